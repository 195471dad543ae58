"""CoT decoding over a model that shows alternatives and continues prefixes."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.budget import Limits
from optillm_hooks.decoding.remote.calls import token_ends
from optillm_hooks.decoding.remote.cot_decoding import first_tokens
from optillm_hooks.errors import EmptyCompletion, ProviderFailed, Refused, RequestRejected
from optillm_hooks.pipeline.events import Outcome, Request
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import resolve
from optillm_hooks.pipeline.run import run
from optillm_hooks.testing import chat
from optillm_hooks.types import Completion, Sampling, TokenLogprob
from tests.vllm import END, PrefixLLM, sure, token

pytestmark = pytest.mark.anyio
FIRST = token("9", 0.5, ("I", 0.3), ("We", 0.15), (" I", 0.02), ("\n", 0.01), (END, 0.005))


def apples(prefix: str, _body: Mapping[str, Any]) -> Sequence[TokenLogprob]:
    """A greedy reader says 9, then 7; whoever begins to think says 8."""
    if prefix == "":
        return [FIRST, *sure(END)]
    rest = {
        "9": sure(" or maybe just", " 7", END, margin=0.8),
        "I": [*sure(" count", " in", " all"), *sure(" 8", margin=0.7), *sure(END)],
        "We": [*sure(" have", " 8", margin=0.5), *sure(END)],
    }
    return rest[prefix]


def near(*tokens: tuple[str, float]) -> list[tuple[str, Any]]:
    return [(text, pytest.approx(p)) for text, p in tokens]


async def ask(llm: PrefixLLM, approach: str = "cot_decoding", **how: Any) -> Outcome:
    how.setdefault("client", Sampling())
    request = Request(plan=resolve(parse(approach)), base="base", chat=chat("Apples?"), **how)
    return await run(request, {"base": llm}.__getitem__)


async def test_the_answers_of_branches_add_up_and_the_surest_of_them_is_returned() -> None:
    """7 has a margin of 0.8; 8 has 0.7 + 0.5."""
    llm = PrefixLLM(apples)
    ended = await ask(llm, "cot_decoding(k=3)")
    assert ended.answers[0] == Completion("I count in all 8", usage=ended.answers[0].usage)  # type: ignore[attr-defined]
    [(name, facts)] = ended.report.notes
    assert (name, facts["paths"], facts["agreeing"]) == ("cot_decoding", 3, 2)
    assert facts["confidence"] == pytest.approx(0.7)


async def test_it_costs_one_call_and_one_for_each_branch_all_at_once() -> None:
    llm = PrefixLLM(apples)
    report = (await ask(llm, "cot_decoding(k=3)")).report
    assert (report.calls, report.depth) == (4, 2)
    assert report.usage.completion_tokens == 1 + 3 + 5 + 3


async def test_without_aggregation_the_surest_branch_wins() -> None:
    ended = await ask(PrefixLLM(apples), "cot_decoding(k=3;aggregate_paths=false)")
    assert ended.answers[0].text == "9 or maybe just 7"


@pytest.mark.parametrize(
    ("parameters", "answer"),
    [("", "17"), ("first_token_exponent=0", "16"), ("every_mention=false", "1")],
)
async def test_unlikely_beginnings_and_copied_answers_count_less(
    parameters: str, answer: str
) -> None:
    """1 is surely copied, but hardly worked out; 16 has two branches from unlikely first tokens."""

    def copies(prefix: str, _body: Mapping[str, Any]) -> Sequence[TokenLogprob]:
        rest = {
            "": [token("9", 0.5, ("We", 0.49), ("8", 0.001), ("On", 0.001))],
            "9": [*sure(" - 8 ="), *sure(" 1", margin=0.1), *sure(", so", " 1", END, margin=0.99)],
            "We": sure(" count", " 17", END, margin=0.8),
            "8": sure(" or", " 16", END),
            "On": sure(" it,", " 16", END),
        }
        return rest[prefix]

    ended = await ask(PrefixLLM(copies), f"cot_decoding({parameters})")
    assert ended.answers[0].text.split()[-1] == answer


async def test_branches_keep_to_the_clients_limit_and_stop_and_are_greedy() -> None:
    llm = PrefixLLM(apples)
    client = Sampling(max_tokens=3, stop=(" in",), temperature=1.0, seed=3)
    ended = await ask(llm, "cot_decoding(k=3)", client=client)
    first, *branches = [sampling for _, sampling in llm.calls]
    assert (first.max_tokens, first.stop, first.temperature) == (1, (), 0.0)
    assert {(b.max_tokens, b.stop, b.temperature) for b in branches} == {(2, (" in",), 0.0)}
    assert ended.answers[0].text == "I count"
    assert ended.answers[0].finish_reason == "stop"


async def test_the_margin_is_that_of_the_two_likeliest_whichever_was_drawn() -> None:
    """Drawn is the third of 0.6, 0.3 and 0.1: the margin is 0.3."""

    def unlikely(prefix: str, body: Mapping[str, Any]) -> Sequence[TokenLogprob]:
        return (
            apples(prefix, body)
            if prefix == ""
            else [token(" or maybe just 7", 0.1, ("a", 0.6), ("b", 0.3))]
        )

    ended = await ask(PrefixLLM(unlikely), "cot_decoding(k=1;branch_temperature=1)")
    assert ended.report.notes[0][1]["confidence"] == pytest.approx(0.3)


async def test_a_reply_of_one_token_needs_no_branch() -> None:
    llm = PrefixLLM(apples)
    ended = await ask(llm, client=Sampling(max_tokens=1))
    assert (ended.answers[0].text, ended.answers[0].finish_reason) == ("9", "length")
    assert len(llm.calls) == 1


async def test_a_branch_that_fails_is_left_out() -> None:
    def flaky(prefix: str, body: Mapping[str, Any]) -> Sequence[TokenLogprob]:
        if prefix == "I":
            raise ProviderFailed("busy", status=503)
        return apples(prefix, body)

    ended = await ask(PrefixLLM(flaky), "cot_decoding(k=3)")
    assert ended.answers[0].text == "9 or maybe just 7"


async def test_a_limit_of_calls_still_gives_an_answer() -> None:
    ended = await ask(PrefixLLM(apples), "cot_decoding(k=3)", limits=Limits(max_calls=2))
    assert ended.answers[0].text == "9 or maybe just 7"
    assert ended.report.stopped_by == "max_calls"


async def test_a_limit_of_tokens_is_shared_out_to_the_branches() -> None:
    llm = PrefixLLM(apples)
    ended = await ask(llm, "cot_decoding(k=3)", limits=Limits(max_tokens_total=700))
    assert ended.answers[0].text == "I count in all 8"
    assert all((sampling.max_tokens or 0) > 1 for _, sampling in llm.calls[1:])


async def test_more_branches_than_alternatives_are_refused() -> None:
    with pytest.raises(Refused, match="k can be at most 20 on 'base', got 21"):
        await ask(PrefixLLM(apples), "cot_decoding(k=21)")


async def test_a_model_that_hides_what_it_promised_is_told_of() -> None:
    def hiding(_prefix: str, _body: Mapping[str, Any]) -> Sequence[TokenLogprob]:
        return [token("9", 1.0)]

    class Hiding(PrefixLLM):
        async def complete(self, *call: Any) -> Completion:
            return Completion((await super().complete(*call)).text)

    with pytest.raises(Refused, match="did not return the log-probabilities"):
        await ask(Hiding(hiding))


async def test_samples_of_an_approach_are_decoded_each_by_itself_at_its_temperature() -> None:
    """Candidates in two ways: the branches of each are sampled, and the judge sees whole ones."""

    def writes(prefix: str, body: Mapping[str, Any]) -> Sequence[TokenLogprob]:
        if "top_logprobs" not in body:
            return sure("RATING: ", "9" if "8" in body["messages"][-1]["content"] else "2")
        if prefix == "" or body["sample"] == 0:
            return apples(prefix, body)
        return sure(" say", " 7", END, margin=0.99)

    llm = PrefixLLM(writes)
    ended = await ask(llm, "cot_decoding(k=3)&bon(n=2;temperature=0.8)")
    assert ended.answers[0].text == "I count in all 8"
    pieces = [sampling for _, sampling in llm.calls if sampling.purpose == "piece"]
    judged = [asked for asked, sampling in llm.calls if sampling.purpose == "judge"]
    assert [p.temperature for p in pieces if p.max_tokens != 1] == [0.8] * 6
    assert len(judged) == 2
    assert ["say 7" in asked[-1].text for asked in judged] == [False, True]
    assert ended.report.calls == len(llm.calls) == 2 * 4 + 2


def test_beginnings_that_are_no_text_or_the_same_but_for_blanks_are_left_out() -> None:
    assert first_tokens(FIRST, 20) == near(("9", 0.5), ("I", 0.3), ("We", 0.15))
    assert first_tokens(FIRST, 2) == near(("9", 0.5), ("I", 0.3))
    odd = token("\ufffd", 0.5, ("</s>", 0.3), (" x", 0.1))
    assert first_tokens(odd, 5) == near((" x", 0.1))
    with pytest.raises(EmptyCompletion):
        first_tokens(token(END, 0.9, (" ", 0.1)), 5)


def test_the_end_of_each_token_is_found_in_the_text() -> None:
    assert token_ends("It is 42.", ["It", " is", " 4", "2", ".", END]) == [2, 5, 7, 8, 9, 9]
    assert token_ends("caf\u00e9 5", ["caf", "\ufffd", "\ufffd", " 5"]) == [3, 3, 3, 6]


@given(st.lists(st.text(min_size=1, max_size=4), max_size=8))
def test_ends_of_tokens_that_make_the_text_are_their_summed_lengths(tokens: list[str]) -> None:
    text = "".join(tokens)
    assert token_ends(text, tokens) == [len("".join(tokens[: i + 1])) for i in range(len(tokens))]


async def test_a_model_that_continues_nothing_is_refused_before_any_call() -> None:
    with pytest.raises((RequestRejected, Refused), match="continues_prefix"):
        await ask(PrefixLLM(apples, fields=["logprobs", "top_logprobs"]))


async def test_a_model_that_has_nothing_to_say_gives_an_empty_answer() -> None:
    [answer] = (await ask(PrefixLLM(lambda *_: [token(END, 1.0)]))).answers
    assert (answer.text, answer.finish_reason) == ("", "stop")
