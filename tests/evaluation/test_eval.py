"""`optillm-hooks eval`: what it asks, keeps and reports, against a provider on loopback."""

import asyncio
import csv
import json
import re
import signal
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import pytest

from optillm_hooks.cli import main
from optillm_hooks.config_files import CannotRun
from optillm_hooks.evaluation.asking import Outcome, grade_of, read_outcomes
from optillm_hooks.evaluation.page import as_html
from optillm_hooks.evaluation.problems import problems_of
from optillm_hooks.evaluation.questions import Problem
from optillm_hooks.evaluation.report import as_csv, as_table, frontier, rows_of
from tests.proxy import ROOT
from tests.upstream import Call, Reply, Script, Status, Upstream, at, every

STRONG, WEAK = "strong", "weak"


def answering(call: Call, _choice: int) -> Reply | str:
    """The strong model is always right, the weak one about sums only, and has no answer else."""
    [problem] = [p for p in problems_of("worked_examples:30", 1) if p.messages == call.messages]
    asked = str(problem.messages[-1]["content"])
    numbers = [int(n) for n in re.findall(r"\d+", asked)]
    is_sum = "more" in asked
    if call.body["model"] == WEAK and not is_sum:
        return "I cannot say."
    return f"It is {sum(numbers) if is_sum else numbers[0] * numbers[1]}."


def evaluate(upstream: Upstream, out: Path, *more: str, models: str = f"{WEAK},{STRONG}") -> int:
    options = ["--models", models, "--tasks", "worked_examples:30", "--out", str(out), *more]
    return main(["eval", "--base-url", upstream.url, "--key", "sk-any", *options])


def test_every_model_is_asked_every_problem_and_compared_with_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Upstream(Script(reply=answering)) as upstream:
        assert evaluate(upstream, tmp_path, "--max-tokens", "64", "--temperature", "0") == 0
        asked = Counter(call.body["model"] for call in upstream.calls)
        assert all(call.body["max_tokens"] == 64 for call in upstream.calls)
        told = [call.told for call in upstream.calls if call.told]
    assert asked == {WEAK: 30, STRONG: 30}
    sums = sum(
        "more" in str(p.messages[-1]["content"]) for p in problems_of("worked_examples:30", 1)
    )
    assert 0 < sums < 30
    rows = list(csv.DictReader((tmp_path / "report.csv").read_text().splitlines()))
    weak, strong = rows
    assert [float(weak["accuracy"]), float(strong["accuracy"])] == [sums / 30, 1.0]
    assert [int(weak["unread"]), int(strong["unread"])] == [30 - sums, 0]
    assert [int(strong["wins"]), int(strong["losses"])] == [30 - sums, 0]
    assert sum(float(row["tokens"]) for row in rows) * 30 == sum(t.total_tokens for t in told)
    printed = capsys.readouterr().out
    assert f"0:{0}" not in printed.split(WEAK)[1].split("\n")[0]
    assert f"{30 - sums}:0" in printed
    page = (tmp_path / "report.html").read_text()
    assert page.count("<circle") == 2
    assert STRONG in page


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with Upstream(Script(reply=answering)) as upstream:
        assert evaluate(upstream, tmp_path, models=WEAK) == 0
        kept = (tmp_path / "outcomes.jsonl").read_text()
        half = "".join(kept.splitlines(keepends=True)[:10])
        (tmp_path / "outcomes.jsonl").write_text(half + '{"model": "weak", "prob')
        upstream.play(Script(reply=answering))
        assert evaluate(upstream, tmp_path, models=WEAK) == 0
        assert len(upstream.calls) == 20
    outcomes = read_outcomes(tmp_path / "outcomes.jsonl")
    assert len(outcomes) == len({outcome.problem for outcome in outcomes}) == 30


def test_other_settings_do_not_mix_into_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Upstream(Script(reply=answering)) as upstream:
        assert evaluate(upstream, tmp_path, models=WEAK) == 0
        upstream.play(Script(reply=answering))
        assert evaluate(upstream, tmp_path, "--temperature", "1", models=WEAK) == 1
        assert upstream.calls == []
    assert "choose another --out" in capsys.readouterr().err


def test_a_question_that_has_been_changed_is_asked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, lines = tmp_path / "own.jsonl", [{"question": f"{n}?", "answer": n} for n in range(3)]
    given = ["--models", WEAK, "--tasks", str(file), "--out", str(tmp_path)]
    with Upstream(Script(reply=lambda *_: "It is 1.")) as upstream:
        for answer in (2, 1):
            lines[2]["answer"] = answer
            file.write_text("\n".join(map(json.dumps, lines)))
            assert main(["eval", "--base-url", upstream.url, *given]) == 0
        assert [call.messages[0]["content"] for call in upstream.calls[3:]] == ["2?"]
    [row] = csv.DictReader((tmp_path / "report.csv").read_text().splitlines())
    assert (row["problems"], float(row["accuracy"])) == ("3", 2 / 3)
    assert "are changed or gone now: 1." in capsys.readouterr().out


def test_kill_9_loses_the_calls_under_way_only(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "optillm_hooks", "eval", "--models", f"{WEAK},{STRONG}"]
    command += ["--tasks", "worked_examples:30", "--out", str(tmp_path), "--at-once", "4"]
    file = tmp_path / "outcomes.jsonl"
    with Upstream(Script(reply=answering, latency_s=0.05)) as upstream:
        command += ["--base-url", upstream.url]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        upstream.wait_until(lambda it: len(it.calls) >= 25, within_s=60)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = len(read_outcomes(file))
        assert len(upstream.calls) - before <= 4
    with Upstream(Script(reply=answering)) as upstream:  # a new one, as late calls may arrive above
        command[-1] = upstream.url
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert len(upstream.calls) == 60 - before
    outcomes = read_outcomes(file)
    assert Counter((o.model, o.problem) for o in outcomes).most_common(1)[0][1] == 1
    assert len(outcomes) == 60


def test_a_storm_of_429_slows_it_and_loses_nothing(tmp_path: Path) -> None:
    storm = every(2, Status(429, retry_after="0.01"))
    with Upstream(Script(reply=answering, fault=storm)) as upstream:
        assert evaluate(upstream, tmp_path, models=STRONG) == 0
        assert len(upstream.calls) > 30
    outcomes = read_outcomes(tmp_path / "outcomes.jsonl")
    assert [outcome.grade for outcome in outcomes] == ["right"] * 30


def test_a_429_holds_back_every_request(tmp_path: Path) -> None:
    """The host wants a pause, so only the requests that were under way may come before its end."""
    pause, at_once = 0.5, 4
    first = at({number: Status(429, retry_after=str(pause)) for number in range(at_once)})
    with Upstream(Script(reply=answering, fault=first)) as upstream:
        assert evaluate(upstream, tmp_path, "--at-once", str(at_once), models=STRONG) == 0
        begun = sorted(call.started for call in upstream.calls)
        assert len(begun) == 30 + at_once
        refused = min(call.ended or 0.0 for call in upstream.calls[:at_once])
    assert begun[at_once] - refused >= pause
    outcomes = read_outcomes(tmp_path / "outcomes.jsonl")
    assert [outcome.grade for outcome in outcomes] == ["right"] * 30


def test_what_a_host_refuses_is_reported_and_asked_for_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = at({0: Status(400, error="model_not_found"), 1: Status(401)})
    with Upstream(Script(reply=answering, fault=refused)) as upstream:
        assert evaluate(upstream, tmp_path, "--at-once", "1", models=STRONG) == 0
        assert len(upstream.calls) == 30
        assert "1 without a grade: strong: 400 model_not_found" in capsys.readouterr().out
        [row] = csv.DictReader((tmp_path / "report.csv").read_text().splitlines())
        assert [row["problems"], row["failed"]] == ["28", "2"]
        upstream.play(Script(reply=answering))
        assert evaluate(upstream, tmp_path, models=STRONG) == 0
        assert len(upstream.calls) == 2
    assert "without a grade" not in capsys.readouterr().out
    [row] = csv.DictReader((tmp_path / "report.csv").read_text().splitlines())
    assert [row["problems"], row["failed"]] == ["30", "0"]


OWN = [
    {"question": "What is 6 * 7?", "answer": 42, "check": "number"},
    {"question": "Which one? A) red B) blue", "answer": "B", "check": "choice"},
    {"id": "word", "question": "Say only: yes", "answer": "yes", "check": "exact"},
    {"question": "Name a planet.", "check": "regex", "pattern": r"\b(Mars|Venus)\b"},
    {
        "messages": [{"role": "user", "content": "A list, as JSON."}],
        "check": "json_schema",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "array"}},
        },
    },
]


@pytest.fixture
def own(tmp_path: Path) -> list[Problem]:
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(map(json.dumps, OWN)) + "\n\n")
    return problems_of(str(file), 1)


@pytest.mark.parametrize(
    ("number", "right", "wrong"),
    [
        (0, "6 * 7 = 42, so **42**.", "It is 41."),
        (1, "<think>A?</think>The answer is (B).", "ANSWER: A"),
        (2, "<think>hm</think>\nyes\n", "Yes."),
        (3, "I like Venus.", "<think>Mars</think>Pluto"),
        (4, '["a", 1]', '{"a": 1}'),
    ],
)
def test_own_questions_are_graded(own: list[Problem], number: int, right: str, wrong: str) -> None:
    assert asyncio.run(grade_of(own[number], right)) == "right"
    assert asyncio.run(grade_of(own[number], wrong)) in ("wrong", "unread")


def test_own_questions_have_ids_that_stay(own: list[Problem], tmp_path: Path) -> None:
    assert [each.id for each in own[:3]] == ["own.jsonl/1", "own.jsonl/2", "word"]
    some = problems_of(f"{tmp_path / 'own.jsonl'}:2", 5)
    assert some == problems_of(f"{tmp_path / 'own.jsonl'}:2", 5)
    assert len(some) == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question": "?"}', "line 1: line: check 'auto' needs answer"),
        ('{"answer": "a"}', "either question or messages"),
        ('{"question": "?", "answer": "a", "chek": "exact"}', "line 1: chek"),
        ("{", "line 1: line: is not valid JSON"),
        ("", "has no questions"),
        *(
            (f'{{"question": "?", "answer": {answer}}}', "answer: must be a text that is not empty")
            for answer in ('" "', "true", "NaN", "-Infinity", "1e999", '["a"]')
        ),
        ('{"messages": [{"content": "?"}], "answer": 1}', "messages[0].role must be one of"),
        ('{"messages": [], "answer": 1}', "messages must be a list"),
        (
            '{"question": "?", "check": "json_schema", "response_format": '
            '{"type": "json_schema", "json_schema": {"schema": {"type": "nope"}}}}',
            "line 1: line: response_format has a schema that cannot be used: 'nope'",
        ),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "own.jsonl").write_text(line)
    with pytest.raises(CannotRun, match=re.escape(said)):
        problems_of(str(tmp_path / "own.jsonl"), 1)


def test_a_file_that_is_no_text_is_not_called_an_unknown_task(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"question": "?", "answer": 1}', encoding="utf-16")
    with pytest.raises(CannotRun, match=r"own\.jsonl cannot be read: it is not UTF-8$"):
        problems_of(str(tmp_path / "own.jsonl"), 1)


@pytest.mark.parametrize(
    "task", ["nothing_like_it", "worked_examples:0", "reasoning_gym/figlet_font"]
)
def test_an_unknown_task_is_named(task: str) -> None:
    with pytest.raises(CannotRun, match=re.escape(task)):
        problems_of(task, 1)


def outcome(model: str, problem: int, right: bool, **more: object) -> Outcome:
    fields = {"model": model, "problem": str(problem), "seconds": 1.0, **more}
    return Outcome.model_validate({"grade": "right" if right else "wrong", **fields})


def test_only_problems_that_both_have_answered_are_compared() -> None:
    found = [
        outcome("a", 1, True), outcome("a", 2, False),
        outcome("b", 2, True), outcome("b", 3, True),
        Outcome(model="b", problem="1", error="500", seconds=1.0),
    ]  # fmt: skip
    _, b = rows_of(found, ["a", "b"])
    assert b.difference
    assert (b.difference.wins, b.difference.losses, b.difference.points) == (1, 0, 1.0)
    assert (b.problems, b.failed) == (2, 1)


def test_the_frontier_has_whom_no_other_beats() -> None:
    found = [
        outcome(model, n, n < right, seconds=seconds, cost_usd=0.1)
        for model, right, seconds in (
            ("cheap", 2, 1),
            ("dear", 6, 9),
            ("middle", 5, 4),
            ("bad", 1, 5),
        )
        for n in range(8)
    ]
    rows = rows_of(found, ["cheap", "dear", "middle", "bad"])
    on_it = [row.model for row in frontier(rows, lambda row: row.p50_s)]
    assert on_it == ["cheap", "middle", "dear"]
    assert as_html(rows, "a <b>").count("<svg") == 2
    assert "a &lt;b&gt;" in as_html(rows, "a <b>")
    assert as_csv(rows).count("\n") == as_table(rows).count("\n") + 1 == 5


def test_the_verdict_is_that_of_the_corrected_test() -> None:
    """Of 8 differences all are wins: p = 2 / 2**8 for each of three models, times 3 by Holm."""
    rights = {"plain": range(8, 20), "much": range(20), "less": range(16, 20), "same": range(8, 20)}
    found = [outcome(m, n, n in right) for m, right in rights.items() for n in range(20)]
    differences = [row.difference for row in rows_of(found, [*rights])]
    assert [each and each.verdict for each in differences] == [None, "better", "worse", "undecided"]


def test_models_that_are_equal_beat_each_other_neither() -> None:
    found = [outcome(m, n, n < 4) for m in ("one", "other", "best") for n in range(8)]
    found += [outcome("best", n, right=True) for n in range(8)]
    rows = rows_of(found, ["best", "one", "other"])
    unbeaten = frontier(rows, lambda row: row.accuracy)
    assert [row.model for row in unbeaten] == ["one", "other", "best"]


def numbered(page: str) -> list[list[str]]:
    """Return the numbers of points that each picture shows."""
    pictures = page.split("<svg")[1:]
    return [re.findall(r">(\d+)</text>", each.partition("<polyline")[2]) for each in pictures]


def test_pictures_name_models_by_number_where_there_is_room() -> None:
    """One costs 1,000 times as much, so the axis is logarithmic; twenty are at one place."""
    spread = [
        outcome(model, n, n < right, seconds=seconds)
        for model, right, seconds in (("a", 2, 0.01), ("b", 4, 0.2), ("c", 6, 10.0))
        for n in range(8)
    ]
    page = as_html(rows_of(spread, ["a", "b", "c"]), "")
    assert numbered(page) == [["1", "2", "3"]]
    assert "logarithmic" in page
    names = [f"model-{n}" for n in range(20)]
    crowd = [outcome(name, n, n < 4) for name in names for n in range(8)]
    page = as_html(rows_of(crowd, names), "")
    assert numbered(page) == [[*"1234"]]
    assert "logarithmic" not in page
    assert page.count('<circle class="unbeaten"') == 20


class Gym(list[dict[str, str]]):
    """A data set as reasoning-gym makes them."""

    def score_answer(self, answer: str, entry: dict[str, str]) -> float:
        return 1.0 if answer == entry["answer"] else len(answer) / 100


def test_families_of_reasoning_gym_are_graded_by_their_own_verifiers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def create_dataset(family: str, *, seed: int, size: int) -> Gym:
        assert (family, seed, size) == ("mini_sudoku", 3, 2)
        return Gym([{"question": "Fill in.", "answer": "1 2\n2 1"}] * size)

    gym = types.ModuleType("reasoning_gym")
    monkeypatch.setattr(gym, "create_dataset", create_dataset, raising=False)
    monkeypatch.setitem(sys.modules, "reasoning_gym", gym)
    one, other = problems_of("reasoning_gym/mini_sudoku:2", 3)
    assert one.id != other.id
    assert str(one.messages[0]["content"]).startswith("Fill in.")
    assert one.grade("<answer>?</answer> or rather\n<answer>\n1 2\n2 1\n</answer>") == "right"
    assert one.grade("<answer>1 2\n1 2</answer>") == "wrong"
    assert one.grade("1 2\n2 1") == "unread"


def gym_with(monkeypatch: pytest.MonkeyPatch, dataset: list[dict[str, object]]) -> None:
    gym = types.ModuleType("reasoning_gym")
    monkeypatch.setattr(gym, "create_dataset", lambda *_, **__: dataset, raising=False)
    monkeypatch.setitem(sys.modules, "reasoning_gym", gym)


@pytest.mark.parametrize(
    ("family", "metadata"),
    [
        ("countdown", {"numbers": [3, 8, 8, 3], "target": 24}),
        ("puzzle24", {"numbers": [8, 3, 3, 8]}),
    ],
)
def test_expressions_are_verified_exactly_and_never_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, family: str, metadata: dict[str, object]
) -> None:
    """The verifiers of reasoning-gym run a reply as Python; puzzle24's takes any four numbers."""
    gym_with(monkeypatch, [{"question": "24?", "answer": "", "metadata": metadata}])
    [problem] = problems_of(f"reasoning_gym/{family}:1", 1)

    def grade(answer: str) -> object:
        return problem.grade(f"<answer>{answer}</answer>")

    assert grade("8 / (3 - 8/3)") == grade("8 ÷ (3 − (8 ÷ 3))") == "right"
    assert grade("-8 / -(3 - 8/3)") == "right"
    made = tmp_path / "made"
    program = f"__import__('pathlib').Path({str(made)!r}).touch()"
    for wrong in (
        "6 * 4 * 1 * 1", "8 + 8 + 3 + 3", "8 * 3 + 8 * 0 * 3", "24", "8 / (3 - 8/3) + 0", "",
        "8.0 / (3 - 8/3)", "8 // 3", "8 / (3 - 3) * 8", "9**9**9**9**9", "(" * 500, "-" * 900 + "8",
        "8 +" * 10_000, program, f"8 / (3 - 8/3) if {program} else 0", "True", "len([1])",
    ):  # fmt: skip
        assert grade(wrong) == "wrong"
    assert not made.exists()


def test_a_verifier_that_fails_costs_its_own_problem_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(list[dict[str, object]]):
        def score_answer(self, answer: str, _: object) -> float:
            raise OverflowError(answer)

    gym_with(monkeypatch, Failing([{"question": "?", "answer": "1"}]))
    [problem] = problems_of("reasoning_gym/calendar_arithmetic:1", 1)
    assert problem.grade("<answer>1</answer>") == "wrong"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(CannotRun, match=r"optillm-hooks\[eval\]"):
        problems_of("reasoning_gym/chain_sum", 1)


def test_a_run_does_not_wait_for_litellm_to_load() -> None:
    """It would take seconds, and LiteLLM looks for its list of prices on the network."""
    modules = "asking, judge, page, problems, report"
    program = (
        f"import sys, optillm_hooks.commands.eval\nfrom optillm_hooks.evaluation import {modules}\n"
        "raise SystemExit('litellm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
