"""Problems of one step in arithmetic, drawn at random: after worked examples, and alone."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

Messages = list[dict[str, str]]

_NUMBER: Final = re.compile(r"\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Problem:
    messages: Messages
    answer: int


def _product(a: int, b: int, box: str = "boxes", thing: str = "pens") -> tuple[str, str]:
    asked = f"There are {a} {box} with {b} {thing} in each. How many {thing} are there in all?"
    return (
        asked,
        f"{a} {box} with {b} {thing} each are {a} * {b} = {a * b} {thing}. The answer is {a * b}.",
    )


def _sum(a: int, b: int, name: str = "Mia", thing: str = "coins") -> tuple[str, str]:
    asked = f"{name} has {a} {thing} and finds {b} more. How many {thing} does {name} have now?"
    return (
        asked,
        f"{a} {thing} and {b} {thing} are {a} + {b} = {a + b} {thing}. The answer is {a + b}.",
    )


def _difference(a: int, b: int) -> tuple[str, str]:
    asked = f"A shop has {a} lamps and sells {b} of them. How many lamps are left?"
    return asked, f"{a} lamps less {b} lamps are {a} - {b} = {a - b} lamps. The answer is {a - b}."


def _share(a: int, b: int) -> tuple[str, str]:
    asked = f"{a * b} sweets are shared equally by {b} children. How many does each child get?"
    return (
        asked,
        f"{a * b} sweets for {b} children are {a * b} / {b} = {a} sweets each. The answer is {a}.",
    )


EXAMPLES: Final = (_product(3, 4), _difference(11, 4), _sum(6, 5), _share(5, 3))
BOXES: Final = ("bags", "crates", "tins", "drawers", "baskets")
THINGS: Final = ("apples", "books", "cards", "shells", "stamps", "nails")
NAMES: Final = ("Ada", "Ben", "Carla", "Dan", "Eve")


def shown(rng: random.Random) -> Problem:
    """Return a product or sum of small numbers after worked examples of four kinds."""
    thing = rng.choice(THINGS)
    if rng.random() < 0.5:
        a, b = rng.randint(2, 9), rng.randint(2, 6)
        (asked, _), answer = _product(a, b, rng.choice(BOXES), thing), a * b
    else:
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        (asked, _), answer = _sum(a, b, rng.choice(NAMES), thing), a + b
    turns = [
        {"role": role, "content": text}
        for example in EXAMPLES
        for role, text in zip(("user", "assistant"), example, strict=True)
    ]
    return Problem([*turns, {"role": "user", "content": asked}], answer)


def bare(rng: random.Random) -> Problem:
    """Return a problem of one step, alone."""
    a, b = rng.randint(12, 90), rng.randint(11, 60)
    kinds: tuple[Callable[[], tuple[str, int]], ...] = (
        lambda: (f"What is {a} + {b}?", a + b),
        lambda: (f"What is {a + b} - {b}?", a),
        lambda: (f"A shop had {a + b} lamps and sold {b}. How many are left?", a),
        lambda: (f"A train of {a} people takes on {b} more. How many are in it now?", a + b),
    )
    asked, answer = rng.choice(kinds)()
    return Problem([{"role": "user", "content": asked}], answer)


def last_number(text: str) -> float | None:
    """Return the last number in `text`, which is a model's answer here; None if there is none."""
    numbers = _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None


def is_right(text: str, answer: int) -> bool:
    """Return whether the last number in `text` is `answer`."""
    return last_number(text) == answer
