"""What hosts refuse and how their replies differ: no request of an evaluation is lost by it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optillm_hooks.cli import main
from optillm_hooks.evaluation.asking import Outcome, read_outcomes
from optillm_hooks.evaluation.grading import Exact
from tests.json_host import json_host
from tests.provider_rules import openai_refusal

FINE = "fine"
QUESTIONS: list[dict[str, object]] = [
    {"question": "2 + 2?", "answer": 4},
    {"question": "6 * 7?", "answer": "42"},
]


def chat(content: object, **more: object) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": content}}], **more}


def asked(
    tmp_path: Path, host: Callable[[str, Any], tuple[int, Any]], *more: str, **fields: str
) -> list[Outcome]:
    """Return the outcomes of `QUESTIONS` for the models `odd` and `FINE`."""
    lines = [{**question, **fields} for question in QUESTIONS]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with json_host(host) as url:
        options = ["--base-url", url, "--models", f"gpt-5-mini,{FINE}", "--out", str(tmp_path)]
        assert main(["eval", *options, "--tasks", str(tmp_path / "own.jsonl"), *more]) == 0
    return read_outcomes(tmp_path / "outcomes.jsonl")


def solved(body: Any) -> str:
    return "It is 4." if "2 + 2" in str(body["messages"]) else "It is 42."


def test_a_reasoning_model_gets_the_limit_by_its_newer_name(tmp_path: Path) -> None:
    bodies = list[Any]()

    def answer(_: str, body: Any) -> tuple[int, Any]:
        bodies.append(body)
        refusal = openai_refusal(body)
        return (200, chat(solved(body))) if refusal is None else (400, refusal)

    outcomes = asked(tmp_path, answer, "--max-tokens", "64", "--at-once", "1")
    assert [outcome.grade for outcome in outcomes] == ["right"] * 4
    limits = [(b["model"], b.get("max_tokens"), b.get("max_completion_tokens")) for b in bodies]
    assert sorted(limits, key=str) == sorted(
        [
            (FINE, 64, None),
            (FINE, 64, None),
            ("gpt-5-mini", 64, None),  # refused, once
            ("gpt-5-mini", None, 64),
            ("gpt-5-mini", None, 64),
        ],
        key=str,
    )


def test_the_baseline_gets_the_limit_by_its_newer_name_too(tmp_path: Path) -> None:
    refused = list[Any]()

    def answer(_: str, body: Any) -> tuple[int, Any]:
        if (refusal := openai_refusal(body)) is not None:
            refused.append(body)
            return 400, refusal
        return 200, chat("BEST: 1" if "BEST" in str(body["messages"]) else solved(body))

    options = ("--judge", FINE, "--baseline", "gpt-5-nano", "--max-tokens", "64", "--at-once", "1")
    outcomes = asked(tmp_path, answer, *options, check="preferred")
    assert {outcome.grade for outcome in outcomes} <= {"right", "wrong"}
    assert sorted(body["model"] for body in refused) == ["gpt-5-mini", "gpt-5-nano"]


@pytest.mark.parametrize(
    ("failing", "said"), [("the-judge", "the judge failed"), ("other", "the baseline failed")]
)
def test_why_there_is_no_verdict_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], failing: str, said: str
) -> None:
    error = {"message": f"The model {failing} does not exist.", "code": "model_not_found"}

    def answer(_: str, body: Any) -> tuple[int, Any]:
        return (404, {"error": error}) if body["model"] == failing else (200, chat(solved(body)))

    options = ("--judge", "the-judge", "--baseline", "other", "--models", FINE)
    lines = [json.dumps({"question": "2 + 2?", "check": "preferred"})]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    with json_host(answer) as url:
        out = ("--tasks", str(tmp_path / "own.jsonl"), "--out", str(tmp_path))
        assert main(["eval", "--base-url", url, *options, *out]) == 1
    told = f"{FINE}: {said}: 404 model_not_found: The model {failing} does not exist."
    assert told in capsys.readouterr().out


def test_a_judge_may_refuse_the_temperature(tmp_path: Path) -> None:
    def answer(_: str, body: Any) -> tuple[int, Any]:
        if (refusal := openai_refusal(body)) is not None:
            return 400, refusal
        return 200, chat("RIGHT" if "the reply" in str(body["messages"]) else "It is 4.")

    outcomes = asked(tmp_path, answer, "--judge", "gpt-5-mini", check="judge", answer="4")
    assert [(outcome.grade, outcome.unjudged) for outcome in outcomes] == [("right", False)] * 4


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "It is "}, {"type": "text", "text": "4."}],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "5?"}]},
         {"type": "text", "text": "It is 4."}],
        [{"type": "reference", "reference_ids": [5]}, {"type": "text", "text": "It is 4."}],
    ],
)  # fmt: skip
def test_a_text_may_come_in_parts(tmp_path: Path, content: object) -> None:
    outcomes = asked(tmp_path, lambda *_: (200, chat(content)), answer="4")
    assert [outcome.grade for outcome in outcomes] == ["right"] * 4


@pytest.mark.parametrize(
    ("more", "tokens", "cost"),
    [
        ({}, 0, None),
        ({"usage": None}, 0, None),
        ({"usage": {"prompt_tokens": None, "completion_tokens": 7}}, 7, None),
        ({"usage": {"prompt_tokens": 3, "completion_tokens": 7, "queue_s": 0.1}}, 10, None),
        ({"optillm": {"cost_usd": 0.5, "calls": 3}}, 0, 0.5),
    ],
)
def test_usage_and_cost_may_be_missing(
    tmp_path: Path, more: dict[str, Any], tokens: int, cost: float | None
) -> None:
    outcomes = asked(tmp_path, lambda *_: (200, chat("It is 4.", **more)), answer="4")
    for outcome in outcomes:
        assert outcome.prompt_tokens + outcome.completion_tokens == tokens
        assert (outcome.grade, outcome.cost_usd) == ("right", cost)


@pytest.mark.parametrize(
    "document",
    [
        "<html>a page of a host in between</html>",
        {"error": {"message": "with status 200"}},
        {"choices": None},
        {"choices": [{"text": "of another route"}]},
        {"choices": [{"message": {"content": 42}}]},
        {"choices": [{"message": {"content": "4"}}], "optillm": {"calls": "many"}},
        [],
        None,
    ],
)
def test_what_is_no_reply_is_the_failure_of_its_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: object
) -> None:
    monkeypatch.setattr("optillm_hooks.evaluation.asking._FIRST_PAUSE_S", 0.0)

    def answer(_: str, body: Any) -> tuple[int, Any]:
        return 200, chat(solved(body)) if body["model"] == FINE else document

    found = {outcome.model: outcome for outcome in asked(tmp_path, answer)}
    assert found[FINE].grade == "right"
    odd = found["gpt-5-mini"]
    assert (odd.grade, odd.error) == (None, "the response is no chat completion")


def test_a_check_that_fails_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def grade(_: Exact, reply: str) -> str:
        if reply == "It is 42.":
            raise ZeroDivisionError
        return "right"

    monkeypatch.setattr(Exact, "__call__", grade)
    outcomes = asked(tmp_path, lambda _, body: (200, chat(solved(body))), check="exact")
    failed = [outcome for outcome in outcomes if outcome.grade is None]
    assert {outcome.error for outcome in failed} == {"the check failed: ZeroDivisionError"}
    assert (len(failed), len(outcomes)) == (2, 4)
