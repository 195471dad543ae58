"""Checks that run a program or ask a judge: `tests` and `judge` of one's own questions."""

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from optillm_hooks.cli import main
from optillm_hooks.evaluation.asking import read_outcomes
from tests.upstream import Call, Reply, Script, Status, Upstream

JUDGE, GOOD, BAD = "the-judge", "good", "bad"


def fenced(code: str) -> str:
    return f"Here it is:\n```python\n{code}\n```"


PROGRAMS = {
    "right": fenced("def double(x):\n    print('note')\n    return 2 * x"),
    "wrong": fenced("def double(x):\n    return x + 2"),
    "ends": fenced("def double(x):\n    raise SystemExit(0)"),
    "broken": fenced("def double(x:"),
    "none": "I would rather not.",
}


def evaluate(upstream: Upstream, folder: Path, lines: Sequence[object], *more: str) -> int:
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = ["--tasks", str(folder / "own.jsonl"), "--out", str(folder / "out"), *more]
    return main(["eval", "--base-url", upstream.url, "--key", "sk-any", *options])


def rows(folder: Path) -> dict[str, dict[str, str]]:
    lines = (folder / "out" / "report.csv").read_text().splitlines()
    return {row["model"]: row for row in csv.DictReader(lines)}


@pytest.mark.parametrize("runner", ["monty", "bubblewrap"])
def test_a_program_is_right_if_it_passes_all_tests_in_the_sandbox(
    tmp_path: Path, runner: str
) -> None:
    line = {
        "question": "Write double(x).",
        "check": "tests",
        "tests": ["assert double(1) == 2", "assert double(2) == 4"],
    }
    models = ",".join(PROGRAMS)
    script = Script(reply=lambda call, _: PROGRAMS[call.body["model"]])
    with Upstream(script) as upstream:
        assert (
            evaluate(upstream, tmp_path, [line], "--models", models, "--code-runner", runner) == 0
        )
    grades = {each.model: each.grade for each in read_outcomes(tmp_path / "out/outcomes.jsonl")}
    assert grades["right"] == "right"
    assert grades["wrong"] == grades["ends"] == "wrong"
    assert grades["none"] == "unread"
    assert grades["broken"] != "right"


def test_a_program_may_be_tested_by_its_output(tmp_path: Path) -> None:
    line = {
        "question": "Print the double of a number.",
        "check": "tests",
        "tests": [{"input": "3", "output": "6"}, {"input": "5", "output": "10"}],
    }
    replies = {GOOD: fenced("print(2 * int(input()))"), BAD: fenced("print(6)")}
    with Upstream(Script(reply=lambda call, _: replies[call.body["model"]])) as upstream:
        more = ("--models", f"{GOOD},{BAD}", "--code-runner", "bubblewrap")
        assert evaluate(upstream, tmp_path, [line], *more) == 0
    assert {name: row["accuracy"] for name, row in rows(tmp_path).items()} == {
        GOOD: "1.0",
        BAD: "0.0",
    }


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def test_a_judge_sees_the_images_of_a_question(tmp_path: Path) -> None:
    """One that compares sees the conversation as it was asked, one that checks its text."""
    content = [{"type": "text", "text": "What is this?"}, IMAGE]
    asked = {"messages": [{"role": "user", "content": content}]}
    lines = [
        {**asked, "check": "preferred", "baseline": "A cat."},
        {**asked, "check": "judge", "answer": "A dog"},
    ]
    script = Script(reply=lambda *_: "A dog.\nBEST: 1\nRIGHT")
    with Upstream(script) as upstream:
        evaluate(upstream, tmp_path, lines, "--models", GOOD, "--judge", JUDGE)
        judged = [c.messages[0]["content"] for c in upstream.calls if c.body["model"] == JUDGE]
    [compared] = (each for each in judged if isinstance(each, list))
    [checked] = (each for each in judged if isinstance(each, str))
    assert compared[:2] == content
    assert "What is this?" in checked
    assert "image" not in checked


CAPITALS = [
    {"question": "Capital of France?", "answer": "Paris", "check": "judge"},
    {"question": "Capital of Peru?", "answer": "Lima", "check": "judge"},
]


def judging(call: Call, _choice: int) -> Reply | str:
    """The judge finds the answer that it is shown in the reply; it is silent about Lima."""
    asked = str(call.messages[0]["content"])
    if call.body["model"] != JUDGE:
        return "" if call.body["model"] == "mute" else f"It is {_city(call)}. Say RIGHT."
    question, answer, reply = re.findall(r"<text \d \w+>\n(.*?)\n</text", asked, re.DOTALL)
    assert question.startswith("Capital of ")
    if answer == "Lima":
        return "Who knows?"
    return f"I compare them.\n{'RIGHT' if answer in reply else 'WRONG'}"


def _city(call: Call) -> str:
    cities = {"Capital of France?": "Paris", "Capital of Peru?": "Lima"}
    return "Rome" if call.body["model"] == BAD else cities[str(call.messages[0]["content"])]


def test_a_judge_grades_replies_and_its_failures_are_counted_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--models", f"{GOOD},{BAD},mute", "--judge", JUDGE)
    with Upstream(Script(reply=judging)) as upstream:
        assert evaluate(upstream, tmp_path, CAPITALS, *more) == 0
        asked = Counter(call.body["model"] for call in upstream.calls)
    assert asked == {GOOD: 2, BAD: 2, "mute": 2, JUDGE: 2 + 4}  # Lima: asked once more
    found = rows(tmp_path)
    assert {name: row["accuracy"] for name, row in found.items()} == {
        GOOD: "1.0",
        BAD: "0.0",
        "mute": "0.0",
    }
    counted = [(row["problems"], row["unjudged"], row["failed"]) for row in found.values()]
    assert counted == [("1", "1", "0"), ("1", "1", "0"), ("2", "0", "0")]
    assert found["mute"]["unread"] == "2"
    assert f"1 without a grade: {GOOD}: the judge gave no verdict" in capsys.readouterr().out


def test_a_judge_that_fails_loses_no_reply_for_good(tmp_path: Path) -> None:
    def refusing(call: Call) -> Status | None:
        return Status(401) if call.body["model"] == JUDGE else None

    more = ("--models", GOOD, "--judge", JUDGE)
    with Upstream(Script(reply=judging, fault=refusing)) as upstream:
        assert evaluate(upstream, tmp_path, CAPITALS[:1], *more) == 1
        upstream.play(Script(reply=judging))
        assert evaluate(upstream, tmp_path, CAPITALS[:1], *more) == 0
    [row] = rows(tmp_path).values()
    assert (row["accuracy"], row["unjudged"], row["failed"]) == ("1.0", "0", "0")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"question": "?", "check": "judge", "answer": "a"}, "needs the option --judge"),
        (
            {"question": "?", "check": "tests", "tests": ["assert f()"]},
            "needs the option --code-runner",
        ),
        ({"question": "?", "check": "tests", "tests": []}, "tests: must have at least 1"),
        ({"question": "?", "check": "judge"}, "check 'judge' needs answer"),
    ],
)
def test_what_a_check_lacks_is_said_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: object, said: str
) -> None:
    with Upstream() as upstream:
        assert evaluate(upstream, tmp_path, [line], "--models", GOOD) == 1
        assert upstream.calls == []
    assert said in capsys.readouterr().err
