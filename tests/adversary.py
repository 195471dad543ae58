"""Texts that a model may write, or a client send, to make a reader of them slow."""

import json
from typing import Any, Final

from tests.upstream import Reply

REPLIES: Final[dict[str, str]] = {
    "stops": "ANSWER: " + ". " * 50_000,
    "dots": "ANSWER: 42" + "." * 50_000,
    "choices": "choice " * 2_840,
    "stars": f"1 {'*' * 19_900}x",
    "blanks": f"RATING:{' ' * 30_000}x",
    "lines": f"ANSWER:{chr(10) * 50_000}x",
    "tabs": "1\t" * 20_000 + "x",
    "bold": "**a " * 12_000,
    "ticks": "`" * 30_000 + "x",
    "fences": "```python\nprint(1)\n```\n" * 2_000,
    "open fences": "```python\nx = 1\n" * 3_000,
    "tags": "<thinking> <output> </thinking> <reflection> " * 1_200,
    "open tags": "<think> " * 6_000,
    "angles": "<" * 50_000,
    "ratings": "RATING: 7 " * 5_000,
    "bests": "BEST: 1, or 2. " * 3_000,
    "verdicts": "VERDICT: not CORRECT but INCORRECT. " * 1_500,
    "conclusions": "So the answer is the answer is " * 1_600,
    "negations": "not never no " * 4_000,
    "boxes": "\\boxed{" * 12_000,
    "fractions": "ANSWER: " + "\\frac{1}{" * 10_000,
    "braces": "ANSWER: " + "{" * 50_000,
    "brackets": "[" * 50_000,
    "parentheses": "ANSWER: " + "(" * 25_000 + "1" + ")" * 25_000,
    "powers": "ANSWER: " + "9^" * 240 + "9",
    "digits": "ANSWER: " + "9" * 50_000,
    "decimals": "ANSWER: 1." + "0" * 50_000 + "1",
    "sum": "ANSWER: " + " + ".join(f"x_{n}^{n % 7}" for n in range(60)),
    "product": "ANSWER: " + "".join(f"(x + {n})" for n in range(60)),
    "commas": "ANSWER: " + ", ".join(map(str, range(9_000))),
    "ands": "ANSWER: " + " and ".join("abc" for _ in range(7_000)),
    "json": json.dumps({f"k{n}": {"v": [n, str(n)]} for n in range(1_500)}),
    "deep json": '{"a": ' * 8_000 + "1" + "}" * 8_000,
    "dates": "ANSWER: " + "12/11/2020 at half past two, " * 1_700,
    "units": "ANSWER: " + "3 km 2 m " * 5_000,
    "list": "".join(f"{n}. What is it? Is it {n}?\n" for n in range(2_000)),
    "bullets": "- **a**: b\n" * 5_000,
    "table": "| a | b |\n" * 5_000,
    "equations": "$x = 1$ and $$y = 2$$ so \\(z\\) " * 1_500,
    "script": "```smt2\n" + "(assert (and " * 4_000 + "\n```",
    "program": "```python\n" + "(" * 5_000 + "\n```\n" + "assert f(1) == 1\n" * 4_000,
    "one word": "a" * 50_000,
    "letters": "漢字" * 25_000,
}
"""By name; each has at most about 100,000 characters."""

HARMLESS: Final = "A word of it. " * 3_500 + "\nRATING: 7\nBEST: 1\nVERDICT: CORRECT\nANSWER: 42"
"""As long as the others, and nothing for a reader to stumble on."""


STREAM: Final = " ".join(
    f"<thinking><output></reflection><output></thinking><thinking>{n}" for n in range(1_600)
)
"""Tags that come in pieces of 60 characters, all of them different."""


def schema(inner: Any) -> dict[str, Any]:
    wanted = {"name": "wanted", "schema": inner}
    return {"response_format": {"type": "json_schema", "json_schema": wanted}}


_WIDE: Final = {"properties": {f"f{n}": {"description": "x" * 60} for n in range(1_600)}}
FORMATS: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "unique items": (
        schema({"uniqueItems": True}),
        json.dumps([{"id": n, "name": f"n{n}"} for n in range(2_000)]),
    ),
    "alternatives": (
        schema({"items": {"anyOf": [{"const": n} for n in range(500)]}}),
        json.dumps([499] * 4_000),
    ),
    "a long schema": (schema({"allOf": [_WIDE] * 4}), "{}"),
    "a very long schema": (schema({"allOf": [_WIDE] * 10}), "{}"),
    "a slow pattern": (schema({"pattern": "^(a+)+$"}), f'"{"a" * 40}!"'),
}
"""Fields of a request, and the reply that takes long to check."""

_LONG: Final = "word " * 78_000
_TOOL: Final = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(200)}}
_MANY_TOOLS: Final = [
    {"type": "function", "function": {"name": f"f{n}", "parameters": _TOOL}} for n in range(100)
]
_MANY_TURNS: Final = [{"role": "user", "content": f"{n}"} for n in range(5_000)]
_LIMITS: Final = {"max_tokens_total": 10**9}
_MANY: Final = {f"k{n}": 1 for n in range(100_000)}
_TAG: Final = "<optillm_approach>re2</optillm_approach> "


def _asking(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


REQUESTS: Final[dict[str, dict[str, Any]]] = {
    "a long prompt": _asking(_LONG),
    "a long prompt under limits": {**_asking(_LONG), "optillm_limits": _LIMITS},
    "many turns": {"messages": _MANY_TURNS, "optillm_limits": _LIMITS},
    "many parts": {
        **_asking([{"type": "text", "text": f"{n}"} for n in range(5_000)]),
        "optillm_limits": _LIMITS,
    },
    "many tools": {"tools": _MANY_TOOLS, "optillm_limits": _LIMITS},
    "many tags": _asking(_TAG * 5_000),
    "open tags": _asking("<optillm_approach>" * 20_000),
    "many limits": {"optillm_limits": _MANY},
    "many parameters": {"optillm_params": {"bon": _MANY}},
    "many values": {"optillm_params": {"bon": {"n": [{"a": 1}] * 100_000}}},
    "many stops": {"stop": [f"stop{n}" for n in range(20_000)]},
}
"""Fields of a request by what is many or long in them."""

EXPRESSIONS: Final[dict[str, str]] = {
    "deep": "(" * 50_000,
    "long": "re2&" * 20_000 + "re2",
    "wide": "re2|" * 20_000 + "re2",
    "parameters": f"bon({';'.join(f'n={n}' for n in range(20_000))})",
    "one name": "a" * 100_000,
    "a list": f"mars(models=[{';'.join('a' for _ in range(30_000))}])",
}
"""Texts of the field `optillm_approach`."""

LONG_REPLIES: Final[dict[str, Reply]] = {
    "text": Reply("A word of it. " * 350_000),
    "one word": Reply("a" * 5_000_000),
    "a marked value": Reply(f"{'-' * 2_000_000}\nANSWER: {'-' * 590}b"),
    "reasoning": Reply("ANSWER: 42", reasoning="So it is. " * 100_000),
    "a tool call": Reply(tool_calls=[("f", json.dumps({"a": "b" * 1_000_000}))]),
}
"""Replies of megabytes."""
