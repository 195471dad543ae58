"""Accuracy of the methods on one small model: right answers, tokens and seconds.

    python -m benchmarks.accuracy [--problems 60] [--seed 2026] [--dtype bfloat16]
                                  [--weights int8] [--write]

Two families of problems in arithmetic. In `shown`, products and sums in words follow four worked
examples as earlier turns; the model can often do them. In `bare`, of a third as many, sums and
differences come without any example; it mostly cannot. All methods get the same problems,
so each is compared with greedy decoding by the exact test of McNemar over the problems on which the
two differ. Everything runs over LiteLLM's router, as an application would call it.
"""

import asyncio
import os
import random
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from anyio import CapacityLimiter
from litellm.types.utils import ModelResponse
from litellm.utils import custom_llm_setup

from benchmarks.report import parser, publish, table
from optillm_hooks.evaluation.statistics import mcnemar, wilson
from optillm_hooks.evaluation.worked_examples import Messages, Problem, bare, is_right, shown
from optillm_hooks.gateway import provider
from optillm_hooks.local_provider import models
from optillm_hooks.local_provider import provider as local
from optillm_hooks.machine import cpus

BASE: Final = "smollm2"
METHODS: Final[Mapping[str, str]] = {
    "greedy": BASE,
    "one sample": BASE,
    "self_consistency": f"optillm/self_consistency(n=8,temperature=0.7)/{BASE}",
    "majority_voting": f"optillm/majority_voting(n=8,temperature=0.7)/{BASE}",
    "bon, a calculator as judge": f"optillm/bon(n=8,temperature=0.7,judge=calculator)/{BASE}",
    "cot_decoding": f"optillm/cot_decoding(k=10)/{BASE}",
    "entropy_decoding": f"optillm/entropy_decoding/{BASE}",
    "deepconf, variant=low": f"optillm/deepconf(warmup_samples=8,max_traces=16)/{BASE}",
    "deepconf, variant=high": (
        f"optillm/deepconf(warmup_samples=8,max_traces=16,variant=high)/{BASE}"
    ),
}
TEMPERATURES: Final[Mapping[str, float]] = {
    "greedy": 0.0,
    "one sample": 0.7,
    "entropy_decoding": 0.7,
    "deepconf, variant=low": 0.7,
    "deepconf, variant=high": 0.7,
}
AT_ONCE: Final = 32
MAX_TOKENS: Final = 64

_EQUATION: Final = re.compile(r"(\d+) ?([-+*/x]) ?(\d+) ?= ?\$?(\d+)")
_CANDIDATE: Final = re.compile(r"<answer 1 (\S+)>\n(.*)\n</answer 1 \1>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Row:
    """The result of a method on all problems of a family."""

    method: str
    right: Sequence[bool]
    tokens: int
    """Generated tokens per problem, on average."""

    seconds: float
    """For all problems, `AT_ONCE` of them at a time."""


class Calculator(litellm.CustomLLM):
    """A judge that only recomputes the equations of a candidate."""

    async def acompletion(
        self, *_: Any, messages: Messages, model_response: ModelResponse, **__: Any
    ) -> ModelResponse:
        prompt = messages[-1]["content"]
        shown = _CANDIDATE.search(prompt)
        rating = checked(prompt.partition("\n\n")[0], shown[2] if shown else "")
        model_response.choices[0].message.content = f"RATING: {rating}"
        return model_response


def checked(question: str, candidate: str) -> int:
    """Return 0 if an equation of `candidate` is wrong, 10 if one is over the question's numbers.

    3 if there is none. That it should have been another equation is nothing a calculator sees.
    """
    equations = [(int(a), sign, int(b), int(c)) for a, sign, b, c in _EQUATION.findall(candidate)]
    if not all(_holds(*equation) for equation in equations):
        return 0
    numbers = sorted(map(int, re.findall(r"\d+", question)))
    return 10 if any(sorted((a, b)) == numbers for a, _, b, _ in equations) else 3


def _holds(a: int, sign: str, b: int, c: int) -> bool:
    return {"+": a + b == c, "-": a - b == c, "/": a == b * c}.get(sign, a * b == c)


FAMILIES: Final[Mapping[str, Callable[[random.Random], Problem]]] = {"shown": shown, "bare": bare}


def router(dtype: str, threads: int, weights: str | None = None) -> litellm.Router:
    """Return LiteLLM's router over the local model, the methods and the calculator."""
    litellm.custom_provider_map = [
        {"provider": "optillm", "custom_handler": provider},
        {"provider": "optillm-local", "custom_handler": local},
        {"provider": "calculator", "custom_handler": Calculator()},
    ]
    custom_llm_setup()
    made = litellm.Router(
        [
            {
                "model_name": BASE,
                "litellm_params": {"model": f"optillm-local/{BASE}"},
                "model_info": described(dtype, threads, weights),
            },
            _group("calculator", "calculator/it"),
            *(_group(method, model) for method, model in METHODS.items() if model != BASE),
        ],
        num_retries=0,
    )
    provider.use(made)
    return made


def described(dtype: str, threads: int, weights: str | None = None) -> dict[str, Any]:
    """Return the local model's `model_info`."""
    settings = {"dtype": dtype, "weights": weights, "threads": threads, "rows": 64}
    spec = models.find(BASE).model_copy(update=settings)
    return {"optillm_local": spec.model_dump(exclude_defaults=True)}


def _group(name: str, model: str) -> dict[str, Any]:
    return {"model_name": name, "litellm_params": {"model": model}}


async def measure(
    asked: litellm.Router,
    method: str,
    problems: Sequence[Problem],
    seed: int,
    most_tokens: int = MAX_TOKENS,
) -> Row:
    """Return the result of `method` on `problems`; greedy unless the method samples."""
    free = CapacityLimiter(AT_ONCE)
    model = BASE if METHODS[method] == BASE else method
    sampling = {"temperature": TEMPERATURES[method]} if method in TEMPERATURES else {}

    async def solve(number: int, problem: Problem) -> tuple[bool, int]:
        async with free:
            response = await asked.acompletion(
                model=model,
                messages=problem.messages,
                max_tokens=most_tokens,
                seed=seed + 1000 * number,
                **sampling,
            )
        text = response.choices[0].message.content or ""
        return is_right(text, problem.answer), response.usage.completion_tokens

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(solve(n, problem)) for n, problem in enumerate(problems)]
    seconds = time.perf_counter() - begun
    solved = [task.result() for task in tasks]
    written = sum(tokens for _, tokens in solved)
    return Row(method, [right for right, _ in solved], round(written / len(problems)), seconds)


def render(rows: Sequence[Row]) -> str:
    """Return the table of a family; the others are compared with the first row."""
    return table(
        ("method", "accuracy, % [95 %]", "wins : losses", "p", "tokens per problem", "seconds"),
        [_line(row, rows[0]) for row in rows],
    )


def _line(row: Row, base: Row) -> tuple[str, ...]:
    count, right = len(row.right), sum(row.right)
    low, high = wilson(right, count)
    pairs = list(zip(row.right, base.right, strict=True))
    wins, losses = pairs.count((True, False)), pairs.count((False, True))
    compared = ("", "") if row is base else (f"{wins} : {losses}", f"{mcnemar(wins, losses):.2g}")
    return (
        row.method,
        f"{100 * right / count:.1f} [{100 * low:.0f}, {100 * high:.0f}]",
        *compared,
        str(row.tokens),
        f"{row.seconds:.0f}",
    )


async def run(asked: litellm.Router, problems: int, seed: int) -> dict[str, list[Row]]:
    """Return the rows of each family."""
    await asked.acompletion(model=BASE, messages=bare(random.Random(0)).messages, max_tokens=1)  # noqa: S311
    rows: dict[str, list[Row]] = {}
    for family, make in FAMILIES.items():
        rng = random.Random(f"{family} {seed}")  # noqa: S311
        drawn = [make(rng) for _ in range(problems if family == "shown" else max(1, problems // 3))]
        rows[family] = []
        for method in METHODS:
            rows[family].append(await measure(asked, method, drawn, seed))
            print(f"{family}, {method}: {rows[family][-1].seconds:.0f} s", file=sys.stderr)
    return rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--problems", type=int, default=60, help="of the first family")
    options.add_argument("--seed", type=int, default=2026)
    options.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    options.add_argument("--weights", choices=["int8"], help="default: of the type --dtype")
    options.add_argument("--threads", type=int, default=cpus())
    given = options.parse_args()
    begun = time.perf_counter()
    asked = router(given.dtype, given.threads, given.weights)
    rows = asyncio.run(run(asked, given.problems, given.seed))
    body = "\n\n".join(
        f"`{family}`: {len(of[0].right)} problems\n\n{render(of)}" for family, of in rows.items()
    )
    total = (
        f"SmolLM2-135M, {given.dtype}, {given.threads} threads, {AT_ONCE} concurrent problems, "
        f"seed {given.seed}; {time.perf_counter() - begun:.0f} s in total."
    )
    title = f"Accuracy with weights in {given.weights}" if given.weights else "Accuracy"
    publish(title, "benchmarks.accuracy", f"{total}\n\n{body}", write=given.write)


if __name__ == "__main__":
    main()
