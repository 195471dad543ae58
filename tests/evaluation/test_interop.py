"""The problems of `eval` in Inspect and lm-eval.

`make interop` runs both by the commands of docs/harnesses.md. The suite does not have the two
packages: there are stand-ins for what `interop/` takes from them.
"""

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from optillm_hooks.config_files import CannotRun
from optillm_hooks.evaluation.asking import read_outcomes
from optillm_hooks.evaluation.problems import problems_of
from tests.documents import blocks_of
from tests.proxy import ROOT, Proxy, alias, hooked_config, model_group
from tests.upstream import Call, Script, Upstream

INTEROP = ROOT / "interop"
PLAIN, CAREFUL = "gpt-4o-mini", "gpt-4o-mini-careful"
MADE_UP = "worked_examples:80"
SYSTEM = {"role": "system", "content": "Be brief."}
OWN: list[dict[str, Any]] = [
    {"id": "number", "question": "What is 6 * 7?", "answer": 42, "check": "number"},
    {"id": "choice", "question": "Which one? A) red B) blue", "answer": "B", "check": "choice"},
    {"id": "exact", "question": "Say only: yes", "answer": "yes", "check": "exact"},
    {"id": "regex", "question": "Name a planet.", "check": "regex", "pattern": r"\b(Mars|Venus)\b"},
    {
        "id": "json",
        "messages": [SYSTEM, {"role": "user", "content": "An object, as JSON."}],
        "check": "json_schema",
        "response_format": {"type": "json_object"},
    },
    {
        "id": "turns",
        "messages": [
            {"role": "user", "content": "My number is 5."},
            {"role": "assistant", "content": "Noted."},
            {"role": "user", "content": [{"type": "text", "text": "Twice my number?"}]},
        ],
        "answer": 10,
    },
]
REPLIES = {
    "6 * 7": ("I cannot say.", "unread"),
    "Which one?": ("The answer is (A).", "wrong"),
    "Say only": ("<think>Only that.</think>\nyes", "right"),
    "a planet": ("I like Pluto.", "wrong"),
    "as JSON": ('{"list": []}', "right"),
    "Twice": ("It is 10.", "right"),
}


def command(name: str) -> list[str]:
    """Return the words of the page's only command that begins with `name`."""
    lines = [
        block.text for block in blocks_of(ROOT / "docs/harnesses.md") if block.language == "sh"
    ]
    [line] = [line for line in lines if line.startswith(f"{name} ")]
    return shlex.split(line)


def module(name: str) -> Any:
    """Return a module of the folder, loaded by its path, as both harnesses load it."""
    spec = spec_from_file_location(name, INTEROP / f"{name}.py")
    assert spec
    assert spec.loader
    loaded = module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def own(tmp_path: Path) -> str:
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(map(json.dumps, OWN)))
    return str(file)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: object) -> None:
    made = ModuleType(name)
    vars(made).update(members)
    monkeypatch.setitem(sys.modules, name, made)


class ConfigurableTask:
    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.dataset = config["custom_dataset"](**config["metadata"])


@pytest.fixture
def lm_eval(monkeypatch: pytest.MonkeyPatch) -> Any:
    stand_in(monkeypatch, "datasets", Dataset=SimpleNamespace(from_list=list))
    stand_in(monkeypatch, "lm_eval")
    stand_in(monkeypatch, "lm_eval.api")
    stand_in(monkeypatch, "lm_eval.api.task", ConfigurableTask=ConfigurableTask)
    return module("lm_eval_problems")


def recipe() -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda _, node: node.value)
    found: dict[str, Any] = yaml.load((INTEROP / "lm_eval_problems.yaml").read_text(), Loader)  # noqa: S506
    return found


def test_lm_evals_recipe_asks_and_grades_as_eval_does(lm_eval: Any, own: str) -> None:
    recipe_ = recipe()
    _, _, name = recipe_["class"].rpartition(".")
    assert recipe_["class"] == f"lm_eval_problems.{name}"
    metadata = {"tasks": ["one_step:2", own], "seed": 5, "model": "from --model_args"}
    task = getattr(lm_eval, name)({**recipe_, "metadata": metadata})
    assert "class" not in task.config
    documents = task.dataset[recipe_["test_split"]]
    problems = [*problems_of("one_step:2", 5), *problems_of(own, 5)]
    assert [each["id"] for each in documents] == [each.id for each in problems]
    assert all(recipe_["doc_to_text"] in each for each in documents)
    shown = [task.fewshot_context(each, 0, chat_template=json.dumps) for each in documents]
    assert shown == [json.dumps(each.messages) for each in problems]
    metrics = {each["metric"] for each in recipe_["metric_list"]}
    for document, (reply, grade) in zip(documents[2:], REPLIES.values(), strict=True):
        scores = task.config["process_results"](document, [reply])
        assert scores == {each: float(each == grade) for each in metrics}


def test_lm_evals_recipe_says_which_option_is_missing(lm_eval: Any) -> None:
    with pytest.raises(CannotRun, match="--metadata"):
        lm_eval.Problems({**recipe(), "metadata": {}})


async def from_openai(messages: object) -> tuple[str, object]:
    return "from OpenAI's", messages


@pytest.fixture
def inspect(monkeypatch: pytest.MonkeyPatch) -> Any:
    def plain(made: object) -> object:
        return made

    stand_in(monkeypatch, "inspect_ai", Task=SimpleNamespace, task=plain)
    stand_in(monkeypatch, "inspect_ai.dataset", Sample=SimpleNamespace)
    stand_in(monkeypatch, "inspect_ai.model", messages_from_openai=from_openai)
    stand_in(
        monkeypatch, "inspect_ai.scorer", CORRECT="C", INCORRECT="I", Score=SimpleNamespace,
        Scorer=object, Target=object, accuracy=object, stderr=object,
        scorer=lambda metrics: plain if metrics else None,
    )  # fmt: skip
    stand_in(
        monkeypatch, "inspect_ai.solver", Generate=object, Solver=object, TaskState=object,
        generate=object, solver=plain,
    )  # fmt: skip
    return module("inspect_problems")


def test_inspects_task_asks_and_grades_as_eval_does(inspect: Any, own: str) -> None:
    task = inspect.problems(["one_step:2", own], seed=5)
    problems = [*problems_of("one_step:2", 5), *problems_of(own, 5)]
    assert [each.id for each in task.dataset] == [each.id for each in problems]
    states = [SimpleNamespace(metadata=each.metadata) for each in task.dataset]
    for state, problem in zip(states, problems, strict=True):
        asyncio.run(task.setup(state, None))
        assert state.messages == ("from OpenAI's", problem.messages)
    for state, (reply, grade) in zip(states[2:], REPLIES.values(), strict=True):
        state.output = SimpleNamespace(completion=reply)
        score = asyncio.run(task.scorer(state, None))
        assert (score.value, score.explanation) == ("C" if grade == "right" else "I", grade)


def test_the_pages_commands_name_files_that_exist_and_the_same_problems() -> None:
    ours, theirs, lm = command("optillm-hooks"), command("inspect"), command("lm_eval")
    assert (ROOT / theirs[2]).is_file()
    assert (ROOT / lm[lm.index("--include_path") + 1] / "lm_eval_problems.yaml").is_file()
    assert lm[lm.index("--tasks") + 1] == recipe()["task"]
    named = {ours[ours.index("--tasks") + 1], json.loads(lm[lm.index("--metadata") + 1])["tasks"]}
    assert named == {MADE_UP}
    assert f"tasks={MADE_UP}" in theirs


def replying(call: Call, choice: int) -> str:
    """Give a reply that depends on the request and the number of the choice alone.

    Sums are right. The first choice of a product is wrong or has no answer, the others are right.
    """
    asked = call.text.rpartition("\nassistant: ")[2]
    known = [reply for part, (reply, _) in REPLIES.items() if part in asked]
    if known:
        return known[0]
    question = re.findall(r"^.*\b(?:in each|more)\b.*$", call.text, re.MULTILINE)[-1]
    a, b = map(int, re.findall(r"\d+", question)[:2])
    if "more" in question:
        return f"It is {a + b}.\nANSWER: {a + b}"
    if choice == 0:
        return "I cannot say." if a % 3 == 0 else f"ANSWER: {a + b}"
    return f"ANSWER: {a * b}"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream(Script(reply=replying)) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    models = [model_group(PLAIN, upstream.url), alias(CAREFUL, "self_consistency", PLAIN)]
    with Proxy(hooked_config(models), tmp_path_factory.mktemp("proxy")) as running:
        yield running


def run(name: str, proxy: Proxy, model: str, task: str, out: Path) -> None:
    """Run the page's command for this proxy, model and task, its results in `out`."""
    changed = {
        "http://127.0.0.1:4000": proxy.url, CAREFUL: model, MADE_UP: task,
        "@key.txt": proxy.master_key, "results": str(out),
    }  # fmt: skip
    words = command(name)
    for old, new in changed.items():
        words = [word.replace(old, new) for word in words]
    if name == "optillm-hooks":
        words = [sys.executable, "-m", "optillm_hooks", *words[1:], "--out", str(out)]
    own_env = {
        "PROXY_API_KEY": proxy.master_key, "OPENAI_API_KEY": proxy.master_key,
        "INSPECT_LOG_DIR": str(out), "INSPECT_LOG_FORMAT": "json", "INSPECT_DISPLAY": "plain",
    }  # fmt: skip
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, **own_env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def grades_of_eval(out: Path) -> dict[str, str]:
    return {each.problem: str(each.grade) for each in read_outcomes(out / "outcomes.jsonl")}


def grades_of_inspect(out: Path) -> dict[str, str]:
    [file] = out.glob("*.json")
    log = json.loads(file.read_text())
    scores = {str(each["id"]): each["scores"]["graded"] for each in log["samples"]}
    right = sum(score["value"] == "C" for score in scores.values())
    [metrics] = [each["metrics"] for each in log["results"]["scores"]]
    assert metrics["accuracy"]["value"] == pytest.approx(right / len(scores))
    return {name: score["explanation"] for name, score in scores.items()}


def grades_of_lm_eval(out: Path) -> dict[str, str]:
    [samples], [results] = out.rglob("samples_*.jsonl"), out.rglob("results_*.json")
    found = dict[str, str]()
    for line in map(json.loads, samples.read_text().splitlines()):
        grade = "right" if line["right"] else "unread" if line["unread"] else "wrong"
        found[line["doc"]["id"]] = grade
    means = json.loads(results.read_text())["results"]["optillm_problems"]
    assert means["right,none"] == pytest.approx(Counter(found.values())["right"] / len(found))
    return found


@pytest.mark.interop
@pytest.mark.parametrize("model", [PLAIN, CAREFUL])
@pytest.mark.parametrize("own_questions", [False, True])
def test_three_harnesses_agree_in_every_reply(
    proxy: Proxy, upstream: Upstream, tmp_path: Path, own: str, model: str, own_questions: bool
) -> None:
    graded, asked = list[dict[str, str]](), list[Counter[str]]()
    for name, grades in (
        ("optillm-hooks", grades_of_eval),
        ("inspect", grades_of_inspect),
        ("lm_eval", grades_of_lm_eval),
    ):
        upstream.play(Script(reply=replying))
        run(name, proxy, model, own if own_questions else MADE_UP, tmp_path / name)
        graded.append(grades(tmp_path / name))
        asked.append(
            Counter(json.dumps([c.messages, c.body["max_tokens"]]) for c in upstream.calls)
        )
    ours, *theirs = graded
    assert theirs == [ours, ours]
    assert asked[1:] == [asked[0], asked[0]]
    count = Counter(ours.values())
    print(f"\n{model}, {'own questions' if own_questions else MADE_UP}: {dict(count)}")  # noqa: T201
    assert count.total() == (len(OWN) if own_questions else 80)
    if model == PLAIN:  # or the agreement would say little
        assert len(count) == 3
