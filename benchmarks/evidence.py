"""What each approach is worth on the small local model: docs/evidence.md.

    python -m benchmarks.evidence [--problems 60] [--seed 2027] [--at-once 16] [--out FOLDER]
                                  [--write]

Every approach that answers questions gets the same problems, sums and products in words after
worked examples, through a proxy of the shipped configuration. Greedy decoding is the first row, and
the others are compared with it. The seed is not the one by which parameters were chosen (2026). A
run that was killed goes on from its folder.
"""

import asyncio
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.report import DOCS as PERFORMANCE
from benchmarks.report import machine, parser, table, with_section
from optillm_hooks.config_files import SHIPPED
from optillm_hooks.evaluation.asking import (
    Endpoint,
    Outcome,
    ask_all,
    kept,
    of_problems,
    read_outcomes,
)
from optillm_hooks.evaluation.own_proxy import own_proxy
from optillm_hooks.evaluation.problems import problems_of
from optillm_hooks.evaluation.questions import Problem
from optillm_hooks.evaluation.report import COLUMNS, Row, cells, rows_of
from optillm_hooks.evaluation.spend_log import new_run
from optillm_hooks.evaluation.statistics import wins_needed
from tests.json_host import json_host

DOCS: Final = PERFORMANCE.with_name("evidence.md")
BASE: Final = "smollm2"
MAX_TOKENS: Final = 96
SAMPLERS: Final[Mapping[str, str]] = {
    "autothink": "autothink",
    "cascade": "cascade(n=3;strong_n=5)",
    "cot_decoding": "cot_decoding(k=10)",
    "cot_reflection": "cot_reflection",
    "deepconf": "deepconf(warmup_samples=8;max_traces=16)",
    "entropy_decoding": "entropy_decoding",
    "executecode": "executecode",
    "majority_voting": "majority_voting(n=8;temperature=0.7)",
    "re2": "re2",
    "router": "router",
    "self_consistency": "self_consistency(n=8;temperature=0.7)",
    "thinkdeeper": "thinkdeeper",
    "verified": "verified(n=8;temperature=0.7;verifiers=[calculator])",
    "z3": "z3",
}
"""By approach, the expression that is measured, on all problems."""

WITH_A_CHECK: Final = (
    "verified(n=8;temperature=0.7;verifiers=[http])",
    "verified(n=16;temperature=0.7;verifiers=[http])",
)
"""With a check of the operator's that knows the answer, as tests know that of a program."""

THINKERS: Final[Mapping[str, str]] = {
    "abmcts": "abmcts(rollouts=8;verifiers=[calculator])",
    "advisor": "advisor",
    "bon": "bon(n=8;temperature=0.7)",
    "cepo": "cepo",
    "coc": "coc",
    "deepthink": "deepthink",
    "fusion": "fusion",
    "genselect": "genselect",
    "leap": "leap",
    "mars": "mars(lightweight=true)",
    "mcts": "mcts",
    "moa": "moa",
    "plansearch": "plansearch",
    "pvg": "pvg",
    "rsa": "rsa",
    "rstar": "rstar",
    "rto": "rto",
}
"""The same for approaches that write much: they judge, criticize, plan. On a tenth of them."""

NOT_MEASURED: Final[Mapping[str, str]] = {
    "auto": "chooses between others by a policy that your own problems make",
    "compact": "shortens long conversations",
    "deep_research": "needs the web",
    "json": "keeps an answer to a schema",
    "longcepo": "is for long documents",
    "mcp": "needs tools",
    "memory": "needs earlier conversations",
    "none": "is the plain model",
    "on_demand": "runs another approach when the model asks for it",
    "privacy": "hides personal data from the provider",
    "readurls": "needs the web",
    "spl": "needs a store that it has learnt from",
    "web_search": "needs the web",
}
"""By approach, why these problems say nothing about it."""

_HEAD: Final = """# Evidence

What each approach did for one small model on one kind of problem, with the losses as well as the
gains. The model is weak and judges itself badly. What a method does for your model, on your
questions, is measured by [`optillm-hooks eval`](evaluation.md).

The columns are those of an evaluation. The verdict is `better` or `worse` where the difference to
greedy decoding is more than chance (p at most 0.05, corrected for the number of methods).
"""
_SHOWN: Final = (
    "model", "problems", "right % [95 %]", "verdict", "points", "wins:losses", "p (Holm)", "tokens",
    "calls", "depth", "unread",
)  # fmt: skip


def _question(problem: Problem) -> str:
    return str(problem.messages[-1]["content"])


@contextmanager
def proxy_with_a_check(problems: Sequence[Problem]) -> Iterator[tuple[str, str]]:
    """Serve the shipped configuration with the check of `problems`; yield URL and key."""
    config = yaml.safe_load(SHIPPED.read_text())
    config["model_list"][0]["model_info"] = {"optillm_local": {"dtype": "bfloat16", "rows": 64}}
    known = {_question(problem): problem for problem in problems}

    def check(_: str, asked: Any) -> tuple[int, Any]:
        """Answer as the operator's check, which knows the answers."""
        return 200, {"pass": known[asked["question"]].grade(asked["answer"]) == "right"}

    with json_host(check) as address, tempfile.TemporaryDirectory() as folder:
        settings = config["litellm_settings"].setdefault("optillm_settings", {})
        settings["code_runner"] = "monty"
        settings["answer_check"] = {"url": f"{address}/"}
        file = Path(folder) / "litellm_config.yaml"
        file.write_text(yaml.safe_dump(config))
        with own_proxy(file) as served:
            yield served


def measure(problems: Sequence[Problem], at_once: int, file: Path) -> list[Row]:
    """Return the rows of all methods; outcomes that `file` has are not asked for again."""
    samplers, thinkers = (
        [f"{expression}-{BASE}" for expression in expressions]
        for expressions in ((*SAMPLERS.values(), *WITH_A_CHECK), THINKERS.values())
    )
    parts = (([BASE, *samplers], problems), (thinkers, problems[: max(1, len(problems) // 10)]))
    with proxy_with_a_check(problems) as (url, key), kept(file) as keep:
        endpoint = Endpoint(
            url, key, new_run(), at_once=at_once, timeout_s=1800,
            fields={"max_tokens": MAX_TOKENS, "temperature": 0},
        )  # fmt: skip

        def keep_and_show(outcome: Outcome) -> None:
            keep(outcome)
            print(outcome.problem, outcome.model, file=sys.stderr)

        for names, asked in parts:
            done = read_outcomes(file)
            asyncio.run(ask_all(endpoint, names, asked, done, keep_and_show))
    return rows_of(of_problems(read_outcomes(file), problems), [BASE, *samplers, *thinkers])


def render(rows: Sequence[Row]) -> str:
    """Return the rows as tables, the best first below the base, and what has no row.

    Methods that got fewer problems than the base have a table of their own.
    """
    base, *others = rows
    others.sort(key=lambda row: -row.accuracy)
    least = wins_needed(len(others))
    whole = [row for row in others if row.problems >= base.problems]
    few = [row for row in others if row.problems < base.problems]
    parts = (
        _measured([base, *whole]),
        f"The strictest of these {len(others)} tests, the other table's included, takes {least} "
        f"wins without a loss: {100 * least / base.problems:.0f} points of {base.problems} "
        "problems. `undecided` says that they are too few for the difference, not that there is "
        "none.",
        "### On few problems",
        _measured(few),
        _few_show(max((row.problems for row in few), default=0), least),
        "### Not measured",
        table(["approach", "not measured here: it"], [[*each] for each in NOT_MEASURED.items()]),
    )
    return "\n\n".join(parts)


def _measured(rows: Sequence[Row]) -> str:
    places = [COLUMNS.index(name) for name in _SHOWN]
    lines = [[cells(row)[place] for place in places] for row in rows]
    named = [
        ["greedy" if name == BASE else name.removesuffix(f"-{BASE}"), *rest]
        for name, *rest in lines
    ]
    return table(["method", *_SHOWN[1:]], named)


def _few_show(most: int, least: int) -> str:
    said = "These methods write much, and are compared with greedy decoding on their own problems."
    if most >= least:
        return said
    return (
        f"{said} Of at most {most} no verdict is possible, whatever they solve: the rows show that "
        "a method runs on such a model, and what it costs."
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--problems", type=int, default=60)
    options.add_argument("--seed", type=int, default=2027)
    options.add_argument("--at-once", type=int, default=16)
    options.add_argument("--out", type=Path, default=Path("evidence"))
    given = options.parse_args()
    problems = problems_of(f"worked_examples:{given.problems}", given.seed)
    given.out.mkdir(exist_ok=True)
    rows = measure(problems, given.at_once, given.out / f"outcomes-{given.seed}.jsonl")
    day = datetime.now(UTC).date()
    text = (
        f"`python -m benchmarks.evidence --problems {given.problems} --seed {given.seed}` "
        f"on {day} ({machine()})\n\n"
        f"SmolLM2-135M, {len(problems)} problems, at most {MAX_TOKENS} tokens a call, "
        f"{given.at_once} requests at once.\n\n{render(rows)}"
    )
    print(text)
    if given.write:
        document = DOCS.read_text() if DOCS.exists() else _HEAD
        DOCS.write_text(with_section(document, "Sums and products in words", text))


if __name__ == "__main__":
    main()
