"""The benchmarks run, and what they compute is right. Their bounds are for a quiet machine."""

import math
import random
import re

import litellm
import pytest
import torch

from benchmarks import (
    accuracy,
    evidence,
    inner_call_cpu,
    load,
    local_speed,
    perplexity,
    request_cpu,
)
from benchmarks.report import Interval, interval, table, with_section
from optillm_hooks.evaluation import worked_examples
from optillm_hooks.local_provider import provider as local
from optillm_hooks.registry import OWN_PACKAGE, all_approaches
from tests.proxy import model_group
from tests.upstream import Call


def test_what_lies_in_the_router_is_not_ours() -> None:
    ours, router = (
        (f"{inner_call_cpu.OURS}/a.py", 1, "ask"),
        ("litellm/router.py", 2, "acompletion"),
    )
    loop, helper = ("asyncio/events.py", 3, "_run"), ("json.py", 4, "dumps")
    hook = (f"{inner_call_cpu.OURS}/hook.py", 5, "log")
    stats = {
        ours: (1, 1, 1.0, 9.0, {loop: (1, 1, 1.0, 9.0)}),
        router: (1, 1, 5.0, 6.0, {ours: (1, 1, 5.0, 6.0)}),
        helper: (1, 1, 2.0, 2.0, {ours: (1, 1, 2.0, 2.0)}),
        hook: (1, 1, 1.0, 1.0, {router: (1, 1, 1.0, 1.0)}),
    }
    # 9 in all, 6 of them in the router, 1 of which is our own hook again
    assert inner_call_cpu.own_seconds(stats) == (4.0, 6.0)


def test_the_interval_of_ten_values_leaves_out_one_at_each_end() -> None:
    """P(Binomial(10, 1/2) < 2) = 11/1024: 97.9 % coverage; leaving out two would be 89.1 %."""
    assert interval(list(range(10, 0, -1))) == Interval(5.5, 2, 9)
    assert interval([3, 1, 2]) == Interval(2, 1, 3)
    assert Interval(1, 0.5, 2).show(1) == "1.0 [0.5, 2.0]"


def test_a_section_is_replaced_in_its_place_and_a_new_one_added() -> None:
    document = with_section(with_section("# P\n\nhead\n", "A", "old"), "B", "b")
    assert with_section(document, "A", "new\n") == "# P\n\nhead\n\n## A\n\nnew\n\n## B\n\nb\n"


def test_a_table_is_markdown() -> None:
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_every_approach_is_measured_or_says_why_not() -> None:
    names = {known.name for known in all_approaches() if known.origin == OWN_PACKAGE}
    methods = {**evidence.SAMPLERS, **evidence.THINKERS}
    assert methods.keys() | evidence.NOT_MEASURED.keys() == names
    assert not methods.keys() & evidence.NOT_MEASURED.keys()
    for name, expression in methods.items():
        assert expression.partition("(")[0] == name
    page = evidence.DOCS.read_text()
    for shown in (*methods.values(), *evidence.WITH_A_CHECK, *evidence.NOT_MEASURED):
        assert f"| {shown} |" in page


def test_the_upstream_replies_with_the_markers_of_the_prompt() -> None:
    messages = [{"role": "user", "content": "Say marker-7-end."}]
    call = Call(0, {"messages": messages}, {}, 0.0)
    assert load.markers(load.marked(call, 0)) == {"marker-7-end"}


def test_a_measure_changes_one_setting_of_the_shipped_ones() -> None:
    group = model_group("base", "http://127.0.0.1:1")
    shipped = request_cpu.MEASURES["as shipped"].config(group)
    for name, measure in request_cpu.MEASURES.items():
        assert measure.config(group) == shipped | {
            "litellm_settings": {**shipped["litellm_settings"], **measure.litellm_settings}
        }
        changed = {"as shipped": 0, "both": 2}.get(name, 1)
        assert len(measure.litellm_settings) + len(measure.env) == changed


@pytest.mark.parametrize(
    ("candidate", "rating"),
    [
        pytest.param("4 * 5 = 20, and 20 + 1 = 21.", 10, id="all hold"),
        pytest.param("5 x 4 = 20", 10, id="the other way round"),
        pytest.param("4 * 5 = 20, and 20 + 1 = 22.", 0, id="one does not"),
        pytest.param("4 - 5 = $1", 0, id="money"),
        pytest.param("4 + 4 = 8", 3, id="of other numbers"),
        pytest.param("It is 20.", 3, id="none"),
    ],
)
def test_the_calculator_checks_equations(candidate: str, rating: int) -> None:
    question = "There are 4 boxes with 5 pens in each. How many pens are there in all?"
    assert accuracy.checked(question, candidate) == rating


@pytest.mark.parametrize("family", accuracy.FAMILIES)
def test_problems_are_solved_as_their_numbers_say(family: str) -> None:
    rng = random.Random(0)
    for problem in (accuracy.FAMILIES[family](rng) for _ in range(50)):
        numbers = [int(n) for n in re.findall(r"\d+", problem.messages[-1]["content"])]
        assert problem.answer in (sum(numbers), math.prod(numbers), numbers[0] - numbers[1])
        turns = [turn["content"] for turn in problem.messages[:-1]]
        for asked, reply in zip(turns[::2], turns[1::2], strict=True):
            assert accuracy.checked(asked, reply) == 10


def test_the_table_compares_with_its_first_row() -> None:
    base = accuracy.Row("greedy", [True, False, False], 5, 1.0)
    row = accuracy.Row("vote", [False, True, True], 9, 2.0)
    assert accuracy.render([base, row]).splitlines()[-1] == (
        "| vote | 66.7 [21, 94] | 2 : 1 | 1 | 9 | 2 |"
    )


def test_perplexities_are_compared_window_by_window() -> None:
    base = [1.0, 3.0, 2.0]
    assert perplexity.change([loss + math.log(1.01) for loss in base], base) == (
        "+1.00 % [+1.00, +1.00]"
    )
    assert perplexity.change([1.0, 3.0, 2.3], base) == "+10.52 % [-9.15, +34.45]"


@pytest.mark.benchmark
@pytest.mark.anyio
@pytest.mark.usefixtures("litellm_in_this_loop")
async def test_every_method_is_measured_on_the_real_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litellm, "custom_provider_map", [])
    asked = accuracy.router("float32", threads=1)
    problem = worked_examples.shown(random.Random(0))
    judged: list[tuple[str, str]] = []

    def rated(question: str, candidate: str) -> int:
        judged.append((question, candidate))
        return 5

    monkeypatch.setattr(accuracy, "checked", rated)
    rows = [
        await accuracy.measure(asked, method, [problem], seed=3, most_tokens=6)
        for method in accuracy.METHODS
    ]
    local.engine(accuracy.BASE, {"model_info": accuracy.described("float32", 1)}).close()
    assert {question for question, _ in judged} == {problem.messages[-1]["content"]}
    assert all(candidate for _, candidate in judged)
    tokens = {row.method: row.tokens for row in rows}
    assert 0 < tokens["greedy"] <= 6
    assert tokens["cot_decoding"] > 6 * tokens["greedy"]
    assert all(6 < tokens[method] <= 8 * 6 for method in tokens if "voting" in method)
    assert accuracy.render(rows).count("\n") == 1 + len(accuracy.METHODS)


@pytest.mark.benchmark
def test_the_engine_is_measured_against_generate() -> None:
    torch.set_num_threads(1)  # two would wait for each other where the machine does other work
    bench = local_speed.Bench("float32", 3)
    (line,) = local_speed.compare([bench], ["single"]).splitlines()[2:]
    assert re.sub(r"[\d.]+", "#", line.split("|")[2]) == " # (# s : # s), # % "


@pytest.mark.benchmark
def test_all_types_of_weights_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(local_speed, "ROWS", (2,))
    benches = {weights: local_speed.Bench(weights, 2) for weights in ("float32", "int8")}
    head, _, line = local_speed.speeds(benches, 1, 2).splitlines()
    assert head.startswith("| concurrent rows | float32, 4.00 | int8, 1.0")
    assert re.sub(r"[\d.]+", "#", line).startswith("| # | # (# % of #) | # (# % of #) |")
