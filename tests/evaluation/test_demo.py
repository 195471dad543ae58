"""The demonstration: what it asks, its table, and that it leaves no process behind."""

import asyncio
import subprocess
import sys

import pytest
from openai import AsyncOpenAI

from optillm_hooks.cli import main
from optillm_hooks.evaluation.demo import METHOD, PLAIN, Answers, ask, drawn, summary
from optillm_hooks.evaluation.worked_examples import is_right
from tests.proxy import ROOT
from tests.upstream import Call, Script, Upstream


@pytest.mark.parametrize(
    ("text", "right"),
    [("20 pens. The answer is 20.", True), ("It is 20, not 21", False), ("None.", False)],
)
def test_an_answer_is_right_by_its_last_number(text: str, right: bool) -> None:
    assert is_right(text, 20) is right


def answering(call: Call, _choice: int) -> str:
    """The method is always right; the plain model is right about sums and silent about products."""
    asked = call.messages[-1]["content"]
    [problem] = [p for p in drawn(9) if p.messages[-1]["content"] == asked]
    is_sum = "more" in asked
    if call.body["model"] == PLAIN and not is_sum:
        return "I cannot say."
    return f"The answer is {problem.answer}."


async def asked(url: str) -> list[Answers]:
    async with AsyncOpenAI(base_url=url, api_key="sk-any", max_retries=0) as client:
        return await ask(client, drawn(9))


def test_both_models_are_asked_every_problem(capsys: pytest.CaptureFixture[str]) -> None:
    with Upstream(Script(reply=answering)) as upstream:
        answers = asyncio.run(asked(upstream.url))
        called = sorted(call.body["model"] for call in upstream.calls)
    assert called == [f"{METHOD}-{PLAIN}"] * 9 + [PLAIN] * 9
    problems = drawn(9)
    sums = sum("more" in p.messages[-1]["content"] for p in problems)
    assert 0 < sums < 9
    assert [a.method for a in answers] == [p.answer for p in problems]
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["problem", "right", PLAIN, METHOD]
    assert sum(line.count("✓") for line in lines) == 9 + sums
    assert sum(line.count("- ✗") for line in lines) == 9 - sums
    assert f"solved {9 - sums} that {PLAIN} did not, and missed 0" in summary(problems, answers)


def test_the_accuracies_come_with_their_intervals() -> None:
    problems = drawn(2)
    answers = [Answers(0, problems[0].answer), Answers(None, problems[1].answer)]
    plain, method, _ = summary(problems, answers).splitlines()
    assert plain.split() == [PLAIN, "0", "%", "right", "[0,", "66]"]
    assert method.split() == [METHOD, "100", "%", "right", "[34,", "100]"]


def test_no_problems_are_a_wrong_argument(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--problems", "0"])
    assert "must be a number from 1" in capsys.readouterr().err


@pytest.mark.benchmark
def test_the_demonstration_runs_on_the_real_model() -> None:
    command = [sys.executable, "-m", "optillm_hooks", "demo", "--problems", "2"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert f"{METHOD} solved " in ended.stdout
