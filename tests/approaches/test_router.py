"""router: what it chooses for which question, what that costs, and that it says so."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from optillm_hooks.answers.tasks import Task, task_of
from optillm_hooks.approaches import router
from optillm_hooks.budget import Limits
from optillm_hooks.errors import ProviderFailed
from optillm_hooks.pipeline.events import Outcome, Request
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import resolve
from optillm_hooks.pipeline.run import run
from optillm_hooks.registry import get_approach
from optillm_hooks.testing import HANG, AnsweringLLM, Reply, ScriptedLLM, chat
from optillm_hooks.types import Chat, Completion, Fields, Json, Message, Sampling, ToolCall

pytestmark = pytest.mark.anyio

PUZZLE = (
    "Five houses in a row each have a different colour. The Dane lives next to the red house, and "
    "the Swede does not drink tea. Who owns the fish?"
)
TASKS: Mapping[Task, Sequence[str]] = {
    Task.TEXT: (
        "Hello!",
        "Explain how tides work.",
        "Write a poem about code.",
        "Translate to French: good morning",
        "What should I cook tonight?",
        "Schreibe einen Brief an meine Tante.",
        "为什么天是蓝的？",
        "",
    ),
    Task.CODE: (
        "Write a Python function that reverses a list.",
        "Schreibe eine Funktion, die eine Liste sortiert.",
        "写一个函数，返回列表的最大值",
        "Fix this program:\n```python\nprint(1\n```",
        "```python\ndef add(a, b):\n```",
        "Écris une fonction qui trie une liste.",
    ),
    Task.PROOF: (
        "Prove that sqrt(2) is irrational.",
        "Beweise, dass es unendlich viele Primzahlen gibt.",
        "证明根号2是无理数",
    ),
    Task.PUZZLE: (PUZZLE,),
    Task.DEFINITE: (
        "What is 17*23?",
        "Who wrote Faust?",
        "Combien font 12 fois 12 ?",
        "计算 23 乘以 47",
        "Is 91 prime?",
        "Which is larger?\nA) 9.9\nB) 9.11",
        "A train leaves at 9:40 and takes 155 minutes. When does it arrive?",
    ),
}


@pytest.mark.parametrize(("task", "asked"), [(t, q) for t, qs in TASKS.items() for q in qs])
def test_the_kind_of_a_question(task: Task, asked: str) -> None:
    assert task_of(asked) is task


async def ended(
    llm: ScriptedLLM, asked: Chat | str, expression: str = "router", **how: Any
) -> Outcome:
    request = Request(
        plan=resolve(parse(expression)),
        base="base",
        chat=chat(asked) if isinstance(asked, str) else asked,
        **how,
    )
    outcome = await run(request, {"base": llm}.__getitem__)
    assert "stage_failed" not in outcome.report.degraded, "a call was not in the script"
    return outcome


def note(outcome: Outcome) -> Mapping[str, object]:
    return dict(outcome.report.notes)["router"]


class Stages(AnsweringLLM):
    """Answers the samples by number, and rates by rising numbers."""

    def __init__(self, *samples: Reply) -> None:
        super().__init__(self._reply)
        self._samples = samples
        self._ratings = 0

    def _reply(self, _: Chat, sampling: Sampling) -> Reply:
        if sampling.purpose == "judge":
            self._ratings += 1
            return f"RATING: {self._ratings}"
        return self._samples[(len(self.calls) - 1) % len(self._samples)]


async def test_samples_that_agree_are_enough() -> None:
    llm = ScriptedLLM(["By tens: 391.\nANSWER: 391", "ANSWER: 391.0"])
    outcome = await ended(llm, "What is 17*23?")
    llm.assert_used_up()
    assert outcome.answers[0].text == "By tens: 391."
    assert note(outcome) == {"kind": "definite", "chosen": "none", "reason": "samples_agree"}


async def test_samples_that_differ_are_put_to_the_vote() -> None:
    samples = ["ANSWER: 390", "ANSWER: 391"]
    votes = ["ANSWER: 391", "ANSWER: 1", "ANSWER: 391", "ANSWER: 2", "ANSWER: 391"]
    llm = ScriptedLLM([*samples, *votes])
    outcome = await ended(llm, "What is 17*23?")
    llm.assert_used_up()
    assert outcome.answers[0].text == "391"
    expected = {"kind": "definite", "chosen": "self_consistency", "reason": "samples_differ"}
    assert note(outcome) == expected


@pytest.mark.parametrize(
    ("asked", "allowed", "chosen"),
    [
        (PUZZLE, "z3;self_consistency;bon", "z3"),
        (PUZZLE, "self_consistency;bon", "self_consistency"),
        (PUZZLE, "plansearch", "none"),
        ("Write a Python function that adds.", "plansearch;bon", "plansearch"),
        ("Write a Python function that adds.", "bon", "bon"),
        ("Write a Python function that adds.", "z3", "none"),
        ("Prove that sqrt(2) is irrational.", "plansearch;bon", "bon"),
        ("Prove that sqrt(2) is irrational.", "", "none"),
        ("Explain how tides work.", "plansearch;z3;self_consistency;bon", "none"),
    ],
)
async def test_only_what_the_operator_allows_is_chosen(
    asked: str, allowed: str, chosen: str
) -> None:
    llm = Stages("It is so. ANSWER: 1", "ANSWER: 2", "ANSWER: 3")
    outcome = await ended(llm, asked, f"router(approaches=[{allowed}])")
    assert note(outcome)["chosen"] == chosen
    assert outcome.answers[0].text
    assert outcome.report.calls <= resolve(parse(f"router(approaches=[{allowed}])")).expected_calls


async def test_an_approach_without_its_extra_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(router, "_MODULES", {"z3": "no_such_module"})
    outcome = await ended(Stages("ANSWER: 1", "ANSWER: 2", "ANSWER: 2"), PUZZLE)
    assert note(outcome)["chosen"] == "self_consistency"


def test_the_dearest_choice_is_admitted() -> None:
    dearest = max(
        get_approach(n).cost(get_approach(n).params()).calls for n in ("z3", "plansearch")
    )
    assert resolve(parse("router(approaches=[z3;plansearch])")).expected_calls == 2 + dearest
    assert resolve(parse("router(approaches=[];samples=4)")).expected_calls == 5


TOOL: Json = {"type": "function", "function": {"name": "look", "parameters": {}}}
RESULT: Chat = (
    Message("user", "What is 17*23?"),
    Message("assistant", None, {"tool_calls": [{"id": "1"}]}),
    Message("tool", "391", {"tool_call_id": "1"}),
)


@pytest.mark.parametrize(("asked", "fields"), [("What is 17*23?", {"tools": [TOOL]}), (RESULT, {})])
async def test_an_agents_steps_are_plain_calls(asked: Chat | str, fields: Fields) -> None:
    call = Completion("", tool_calls=(ToolCall("1", "look", "{}"),))
    llm = ScriptedLLM([call])
    outcome = await ended(llm, asked, client=Sampling(fields=fields))
    assert outcome.answers[0].tool_calls == call.tool_calls
    assert outcome.report.calls == 1


async def test_free_text_is_not_put_to_a_vote() -> None:
    llm = ScriptedLLM(["Tom, Kit, Mia, Leo and Max.", "Ada, Bo, Cleo, Dot, Eve"])
    outcome = await ended(llm, "Give me 5 names for a cat.")
    llm.assert_used_up()
    assert outcome.answers[0].text == "Tom, Kit, Mia, Leo and Max."
    assert note(outcome)["reason"] == "nothing_to_compare"


async def test_if_the_chosen_approach_fails_the_first_sample_is_the_answer() -> None:
    busy = ProviderFailed("busy", status=500)
    llm = ScriptedLLM(["ANSWER: 390", "ANSWER: 391", *[busy] * 5])
    outcome = await ended(llm, "What is 17*23?")
    assert outcome.answers[0].text == "390"
    assert outcome.report.degraded


async def test_a_limit_leaves_the_first_sample() -> None:
    llm = ScriptedLLM(["ANSWER: 390", "ANSWER: 391", *[HANG] * 5])
    outcome = await ended(llm, "What is 17*23?", limits=Limits(deadline_s=0.2))
    assert (outcome.answers[0].text, outcome.report.stopped_by) == ("390", "deadline")


async def test_the_clients_temperature_is_that_of_the_chosen_approach_too() -> None:
    llm = Stages("ANSWER: 1", "ANSWER: 2", "ANSWER: 2")
    client = Sampling(temperature=0.3)
    plan = resolve(parse("router"), temperature=0.3)
    request = Request(plan=plan, base="base", chat=chat("What is 1+1?"), client=client)
    await run(request, {"base": llm}.__getitem__)
    assert {sampling.temperature for _, sampling in llm.calls} == {0.3}


async def test_its_width_is_that_of_the_approach_that_it_chooses() -> None:
    llm = ScriptedLLM(["ANSWER: 390", "ANSWER: 391", "ANSWER: 392"])
    outcome = await ended(llm, "What is 17*23?", "router(width=1)")
    llm.assert_used_up()
    assert outcome.answers[0].text == "392"
    assert note(outcome)["chosen"] == "self_consistency"
