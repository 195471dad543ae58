"""Budgets of thinking over a model that continues prefixes: ThinkDeeper and AutoThink."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.decoding.remote.thinking import up_to_thought
from optillm_hooks.errors import ProviderFailed
from optillm_hooks.pipeline.events import Outcome, Request
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import resolve
from optillm_hooks.pipeline.run import run
from optillm_hooks.testing import chat
from optillm_hooks.types import Chat, Completion, Fields, Sampling, TokenLogprob
from tests.vllm import PrefixLLM, sure

pytestmark = pytest.mark.anyio
HARD = "Prove that if 3 < x < 5 then x*x - 8*x + 15 < 0, and compute at least 2 such values."


class Thinker:
    """Thinks `thought` (its own end marker behind it, if any), then answers 42."""

    def __init__(self, *thoughts: str) -> None:
        self._thoughts = list(thoughts)
        self.prefixes: list[str] = []

    def __call__(self, prefix: str, _body: Mapping[str, Any]) -> Sequence[TokenLogprob]:
        self.prefixes.append(prefix)
        if prefix.endswith("</think>\n\n"):
            return sure(*"It is 42.")
        return sure(*(self._thoughts.pop(0) if self._thoughts else "x"))


async def ask(
    writes: Thinker, approach: str, question: str = "6 * 7?", **client: Any
) -> tuple[Outcome, PrefixLLM]:
    llm = PrefixLLM(writes)
    plan = resolve(parse(approach))
    client.setdefault("max_tokens", 200)
    asked = Request(plan=plan, base="base", chat=chat(question), client=Sampling(**client))
    return await run(asked, {"base": llm}.__getitem__), llm


def facts_of(ended: Outcome) -> Fields:
    [(_, facts)] = ended.report.notes
    return facts  # type: ignore[return-value]


async def test_the_budget_ends_thinking_and_the_answer_follows_the_marker() -> None:
    writes = Thinker("a" * 400)
    ended, llm = await ask(writes, "thinkdeeper(max_thinking_tokens=50)")
    [answer] = ended.answers
    assert (answer.reasoning, answer.text) == ("a" * 50, "It is 42.")
    assert writes.prefixes == ["<think>\n", f"<think>\n{'a' * 50}\n</think>\n\n"]
    thinking, answering = [sampling for _, sampling in llm.calls]
    assert (thinking.max_tokens, thinking.stop) == (50, ("</think>",))
    assert (answering.max_tokens, answering.stop) == (150, None)
    assert facts_of(ended) == {
        "least_thinking": 20,
        "most_thinking": 50,
        "thinking": 50,
        "thoughts": 0,
        "pushed_on": 0,
    }


async def test_an_early_end_is_answered_with_words_that_go_on() -> None:
    writes = Thinker("ab\n</think>", "cd", "e" * 40)
    approach = 'thinkdeeper(min_thinking_tokens=30;thought_switch_tokens=["Wait,";But])'
    ended, _ = await ask(writes, approach)
    assert ended.answers[0].reasoning == "ab\nWait,cd\nBut" + "e" * 40
    assert facts_of(ended)["pushed_on"] == 2
    assert writes.prefixes[:3] == ["<think>\n", "<think>\nab\nWait,", "<think>\nab\nWait,cd\nBut"]


async def test_a_model_that_will_not_think_is_not_asked_for_ever() -> None:
    writes = Thinker(*[""] * 99)
    ended, llm = await ask(writes, "thinkdeeper(min_thinking_tokens=50)")
    assert facts_of(ended)["pushed_on"] == 8
    assert len(llm.calls) == 8 + 1 + 1
    assert ended.answers[0].text == "It is 42."


async def test_no_call_is_asked_for_no_tokens() -> None:
    """A server would take it for no limit."""
    for approach in ("thinkdeeper", "thinkdeeper(max_thinking_tokens=50)", "autothink"):
        ended, llm = await ask(Thinker("a" * 9), approach, max_tokens=1)
        assert all((sampling.max_tokens or 0) >= 1 for _, sampling in llm.calls)
        assert ended.answers[0].text


async def test_thinking_beyond_what_was_asked_for_leaves_no_answer() -> None:
    """A provider may write, or report, more tokens than a call asked for."""

    class Overlong(PrefixLLM):
        async def complete(self, chat: Chat, sampling: Sampling, /) -> Completion:
            reply = await super().complete(chat, replace(sampling, max_tokens=300))
            return replace(reply, usage=replace(reply.usage, completion_tokens=300))

    llm = Overlong(Thinker("a" * 300))
    plan = resolve(parse("thinkdeeper(max_thinking_tokens=50)"))
    asked = Request(plan=plan, base="base", chat=chat("6 * 7?"), client=Sampling(max_tokens=200))
    ended = await run(asked, {"base": llm}.__getitem__)
    [answer] = ended.answers
    assert (answer.text, answer.finish_reason, answer.reasoning) == ("", "length", "a" * 300)
    assert len(llm.calls) == 1


async def test_thinking_that_fails_midway_ends_and_the_answer_follows() -> None:
    class Failing(Thinker):
        def __call__(self, prefix: str, body: Mapping[str, Any]) -> Sequence[TokenLogprob]:
            if len(self.prefixes) == 1 and not prefix.endswith("</think>\n\n"):
                self.prefixes.append(prefix)
                raise ProviderFailed("busy", status=503)
            return super().__call__(prefix, body)

    ended, _ = await ask(Failing("ab"), "thinkdeeper(min_thinking_tokens=30)")
    assert ended.answers[0].reasoning.startswith("ab\n")
    assert ended.answers[0].text == "It is 42."


async def test_a_first_call_that_fails_is_the_requests_failure() -> None:
    asked_for: list[str] = []

    def failing(prefix: str, _body: Mapping[str, Any]) -> Sequence[TokenLogprob]:
        asked_for.append(prefix)
        raise ProviderFailed("busy", status=503)

    llm = PrefixLLM(failing)
    plan = resolve(parse("thinkdeeper"))
    asked = Request(plan=plan, base="base", chat=chat("6 * 7?"))
    with pytest.raises(ProviderFailed, match="busy"):
        await run(asked, {"base": llm}.__getitem__)
    assert asked_for == ["<think>\n"]


async def test_thoughts_too_many_are_cut_off_behind_the_word_that_begins_them() -> None:
    writes = Thinker("aWait,bWait,cWait,d")
    ended, _ = await ask(
        writes,
        'thinkdeeper(max_thoughts=2;min_thinking_tokens=0;thought_switch_tokens=["Wait,"])',
    )
    assert ended.answers[0].reasoning == "aWait,bWait,"
    assert facts_of(ended)["thoughts"] == 2


async def test_all_calls_together_write_no_more_than_asked_for() -> None:
    writes = Thinker("ab", *["c" * 400] * 3)
    ended, _ = await ask(writes, "thinkdeeper(reasoning_effort=high)", max_tokens=100)
    assert ended.report.usage.completion_tokens <= 100
    assert facts_of(ended)["most_thinking"] == facts_of(ended)["thinking"] == 50


async def test_markers_and_prefill_are_the_requests() -> None:
    writes = Thinker("a</t>")
    ended, llm = await ask(
        writes,
        'thinkdeeper(min_thinking_tokens=0;prefill="So: ";start_think_token="<t>"'
        ';end_think_token="</t>")',
        stop=("!",),
        fields={"response_format": {"type": "json_object"}},
    )
    assert writes.prefixes == ["<t>\nSo: ", "<t>\nSo: a\n</t>\n\n"]
    assert ended.answers[0].reasoning == "So: a"
    thinking, answering = [sampling for _, sampling in llm.calls]
    assert (thinking.stop, answering.stop) == (("</t>",), ("!",))
    assert "response_format" not in thinking.fields
    assert answering.fields["response_format"] == {"type": "json_object"}


async def test_a_harder_question_gets_more_thinking() -> None:
    found = []
    for question in ("What is the capital of France?", HARD):
        ended, _ = await ask(Thinker("a" * 999), "autothink", question, max_tokens=1000)
        found.append(facts_of(ended))
    easy, hard = found
    assert easy["complexity"] < hard["complexity"]  # type: ignore[operator]
    assert 100 <= easy["thinking"] < hard["thinking"] <= 600  # type: ignore[operator]
    assert hard["thinking"] == hard["most_thinking"]


@pytest.mark.parametrize(
    ("most", "kept", "thoughts"),
    [(9, "a Wait, b But c", 2), (2, "a Wait, b But", 2), (1, "a Wait,", 1), (0, "", 0)],
)
def test_text_is_kept_up_to_the_word_that_begins_the_last_thought(
    most: int, kept: str, thoughts: int
) -> None:
    assert up_to_thought("a Wait, b But c", ("But", "Wait,"), most) == (kept, thoughts)


@given(st.text("ab ", max_size=30), st.integers(0, 5))
def test_what_is_kept_is_a_beginning_and_holds_no_more_thoughts(text: str, most: int) -> None:
    kept, thoughts = up_to_thought(text, ("ab",), most)
    assert text.startswith(kept)
    assert kept.count("ab") == thoughts == min(most, text.count("ab"))
    assert kept == text or thoughts == most
