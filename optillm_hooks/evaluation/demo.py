"""Asks the small local model the same problems twice: plainly, and through `cot_decoding`.

`make demo` and `optillm-hooks demo` start the proxy for it. Each problem is a sum or a product in
words, after four worked examples. They are the first ones that `benchmarks.accuracy` draws, so they
were not chosen by their result.
"""

import asyncio
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from openai import AsyncOpenAI

from optillm_hooks.evaluation.own_proxy import own_proxy
from optillm_hooks.evaluation.statistics import wilson
from optillm_hooks.evaluation.worked_examples import Problem, last_number, shown

PLAIN: Final = "smollm2"
METHOD: Final = "cot_decoding"
_SEED: Final = 2026
_MAX_TOKENS: Final = 64
_LINE: Final = "{:>2}  {:<50}{:>6}{:>10}{:>14}"


@dataclass(frozen=True, slots=True)
class Answers:
    """What the two models answered to a problem; None without a number."""

    plain: float | None
    method: float | None


def drawn(count: int) -> list[Problem]:
    """Return the first `count` problems of the seed."""
    rng = random.Random(f"shown {_SEED}")  # noqa: S311 (problems, not secrets)
    return [shown(rng) for _ in range(count)]


async def ask(client: AsyncOpenAI, problems: Sequence[Problem]) -> list[Answers]:
    """Ask all problems at once, and print a line as soon as both answers to one are there."""
    _say(_LINE.format("", "problem", "right", PLAIN, METHOD))

    async def answer(model: str, problem: Problem) -> float | None:
        response = await client.chat.completions.create(
            model=model,
            messages=problem.messages,  # type: ignore[arg-type]
            max_tokens=_MAX_TOKENS,
            temperature=0,
        )
        return last_number(response.choices[0].message.content or "")

    async def solve(number: int, problem: Problem) -> Answers:
        async with asyncio.TaskGroup() as group:
            plain = group.create_task(answer(PLAIN, problem))
            method = group.create_task(answer(f"{METHOD}-{PLAIN}", problem))
        answers = Answers(plain.result(), method.result())
        told, _, _ = problem.messages[-1]["content"].partition(". How many")
        marked = (_marked(answers.plain, problem), _marked(answers.method, problem))
        _say(_LINE.format(number, told, problem.answer, *marked))
        return answers

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(solve(n, p)) for n, p in enumerate(problems, 1)]
    return [task.result() for task in tasks]


def _marked(answer: float | None, problem: Problem) -> str:
    text = "-" if answer is None else f"{answer:g}"
    return f"{text} {'✓' if answer == problem.answer else '✗'}"


def summary(problems: Sequence[Problem], answers: Sequence[Answers]) -> str:
    """Return the two accuracies, with 95 % intervals, and what they tell."""
    right = [
        (a.plain == p.answer, a.method == p.answer) for p, a in zip(problems, answers, strict=True)
    ]
    lines = [
        _accuracy(name, of)
        for name, of in zip((PLAIN, METHOD), zip(*right, strict=True), strict=True)
    ]
    wins, losses = right.count((False, True)), right.count((True, False))
    return "\n".join(
        (
            *lines,
            f"{METHOD} solved {wins} that {PLAIN} did not, and missed {losses} that it solved.",
        )
    )


def _accuracy(name: str, right: Sequence[bool]) -> str:
    low, high = wilson(sum(right), len(right))
    share = 100 * sum(right) / len(right)
    return f"{name:<13}{share:4.0f} % right  [{100 * low:.0f}, {100 * high:.0f}]"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def run(url: str, key: str, count: int) -> None:
    problems = drawn(count)
    async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=600) as client:
        begun = time.perf_counter()
        answers = await ask(client, problems)
    _say(f"\n{summary(problems, answers)}\n{time.perf_counter() - begun:.0f} s.")


def demonstrate(count: int) -> None:
    """Serve the shipped configuration, ask `count` problems twice, and print what comes of it."""
    _say(f"{count} problems, twice. The proxy starts and loads the model first.")
    with own_proxy() as (url, key):
        asyncio.run(run(url, key, count))
