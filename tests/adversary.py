"""Texts that a model may write, or a client send, to make a reader of them slow."""

import json
from typing import Final

_MANY: Final = 20_000

REPLIES: Final[dict[str, str]] = {
    "stops": "ANSWER: " + ". " * 50_000,
    "dots": "ANSWER: 42" + "." * 100_000,
    "choices": "choice " * 2_840,
    "stars": f"1 {'*' * 19_900}x",
    "blanks": f"RATING:{' ' * 50_000}x",
    "lines": f"ANSWER:{chr(10) * 50_000}x",
    "tabs": "1\t" * 20_000 + "x",
    "bold": "**a " * 20_000,
    "ticks": "`" * 30_000 + "x",
    "fences": "```python\nprint(1)\n```\n" * 4_000,
    "open fences": "```python\nx = 1\n" * 4_000,
    "tags": "<thinking> <output> </thinking> <reflection> " * 2_000,
    "open tags": "<think> " * 12_000,
    "angles": "<" * 50_000,
    "ratings": "RATING: 7 " * 8_000,
    "bests": "BEST: 1, or 2. " * 6_000,
    "verdicts": "VERDICT: not CORRECT but INCORRECT. " * 3_000,
    "conclusions": "So the answer is the answer is " * 3_000,
    "negations": "not never no " * 8_000,
    "boxes": "\\boxed{" * 12_000,
    "fractions": "ANSWER: " + "\\frac{1}{" * 10_000,
    "braces": "ANSWER: " + "{" * 50_000,
    "brackets": "[" * 50_000,
    "parentheses": "ANSWER: " + "(" * 50_000 + "1" + ")" * 50_000,
    "powers": "ANSWER: " + "9^" * 240 + "9",
    "digits": "ANSWER: " + "9" * 100_000,
    "decimals": "ANSWER: 1." + "0" * 100_000 + "1",
    "sum": "ANSWER: " + " + ".join(f"x_{n}^{n % 7}" for n in range(60)),
    "product": "ANSWER: " + "".join(f"(x + {n})" for n in range(60)),
    "commas": "ANSWER: " + ", ".join(map(str, range(20_000))),
    "ands": "ANSWER: " + " and ".join("abc" for _ in range(15_000)),
    "json": json.dumps({f"k{n}": {"v": [n, str(n)]} for n in range(3_000)}),
    "deep json": '{"a": ' * 15_000 + "1" + "}" * 15_000,
    "dates": "ANSWER: " + "12/11/2020 at half past two, " * 3_000,
    "units": "ANSWER: " + "3 km 2 m " * 10_000,
    "list": "".join(f"{n}. What is it? Is it {n}?\n" for n in range(4_000)),
    "bullets": "- **a**: b\n" * 8_000,
    "table": "| a | b |\n" * 8_000,
    "equations": "$x = 1$ and $$y = 2$$ so \\(z\\) " * 2_500,
    "script": "```smt2\n" + "(assert (and " * 8_000 + "\n```",
    "program": "```python\n" + "(" * 5_000 + "\n```\n" + "assert f(1) == 1\n" * 4_000,
    "one word": "a" * 100_000,
    "letters": "漢字" * 40_000,
}
"""By name; each has at most about 100,000 characters."""
