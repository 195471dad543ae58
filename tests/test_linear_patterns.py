"""Every regular expression of the package takes linear time, on texts made to hurt it.

The patterns are found, and the texts are made from them: a new pattern is covered without being
added here.
"""

import re
from collections.abc import Iterator

import pytest

from tests.growth import growth
from tests.package_patterns import Found, package_patterns
from tests.pumps import pumps

SEARCHED = frozenset({"finditer"})
MATCHED = frozenset({"match"})
WHOLE = frozenset({"fullmatch"})


def slow_texts(found: Found) -> Iterator[str]:
    """Yield texts for which the time of a pattern grows faster than their length."""
    found.run("")
    for pump in pumps(found.pattern):
        if not growth(found.run, pump).is_linear:
            yield f"{pump.before!r} + {pump.repeated!r} * n + {pump.after!r}"


def test_every_pattern_of_the_package_takes_linear_time() -> None:
    slow = {
        found.where: (found.pattern.pattern, text)
        for found in package_patterns()
        if (text := next(slow_texts(found), None))
    }
    assert not slow


@pytest.mark.parametrize(
    ("pattern", "methods"),
    [
        pytest.param(r"(?:a|b|ab)*c", MATCHED, id="two ways to repeat"),
        pytest.param(r"(?:\w+\s?)+!", MATCHED, id="nested repetitions"),
        pytest.param(r"(?:[a-z]+)*!", WHOLE, id="a repetition of a repetition"),
        pytest.param(r"[a-z]+(?:[ -](?:and )?[a-z]+)*", WHOLE, id="a word that is a separator too"),
        pytest.param(r"\s+$", SEARCHED, id="blanks before the end, from each blank"),
        pytest.param(r"x.*y", SEARCHED, id="a missing end, from each start"),
        pytest.param(r"\\\[.+?\\\]", SEARCHED, id="a missing delimiter"),
        pytest.param(r"\b(?:if|unless)\b[^.]*$", SEARCHED, id="a word before the end"),
        pytest.param(r"\?\W*$", SEARCHED, id="a mark that may repeat before the end"),
        pytest.param(r"answer[ \t]*:?[ \t]*\d", SEARCHED, id="blanks that two parts take"),
        pytest.param(r"(\S.*?)\s*\)", WHOLE, id="blanks that a lazy part takes too"),
        pytest.param(
            r"[*_`\s]*\d+(?:\.\d+)?[ \t*_`]*(?:out of \d+)?[ \t.*]*$", MATCHED, id="three in a row"
        ),
        pytest.param(
            r"\b(?:best|choice|pick)\b(?:[\s:#(]|choice|answer|is)*\d", SEARCHED, id="a cue inside"
        ),
        pytest.param(r"(?<!\d)0+(?=\d+[/:])", SEARCHED, id="in a lookahead"),
        pytest.param(
            r"(?:(?:the|a)\s+){0,40}(?:[\s\S]{0,400}){2}=", SEARCHED, id="two long bounds"
        ),
    ],
)
def test_slow_patterns_are_found(pattern: str, methods: frozenset[str]) -> None:
    assert any(slow_texts(Found("here", re.compile(pattern), methods)))


@pytest.mark.parametrize(
    ("pattern", "methods"),
    [
        pytest.param(r"(?:a|b)*c", MATCHED, id="one way to repeat"),
        pytest.param(r"[a-z]++(?:[ -][a-z]++)*+", WHOLE, id="words"),
        pytest.param(r"(?<!\s)\s++$", SEARCHED, id="blanks before the end, from the first"),
        pytest.param(r"\s+$", WHOLE, id="only blanks"),
        pytest.param(r"x[^xy]*+y", SEARCHED, id="up to the next start"),
        pytest.param(r"\?[^\w?]*+$", SEARCHED, id="from the last mark"),
        pytest.param(r"answer[ \t]*+(?::[ \t]*+)?\d", SEARCHED, id="blanks of one part"),
        pytest.param(r"(?:\A|\n)[ >*]{0,12}answer: ?[^\n]{1,200}", SEARCHED, id="short bounds"),
    ],
)
def test_linear_patterns_pass(pattern: str, methods: frozenset[str]) -> None:
    assert not any(slow_texts(Found("here", re.compile(pattern), methods)))


def test_patterns_are_found_wherever_they_are() -> None:
    found = {one.where: one.methods for one in package_patterns()}
    for where, methods in {
        "optillm_hooks.gateway.tags._TAG": {"finditer", "sub"},
        "optillm_hooks.gateway.failures._TEXTS": {"search"},
        "optillm_hooks.answers.verdicts._ALONE": {"fullmatch"},
        "optillm_hooks.answers.dates._DATES": {"fullmatch"},
        "optillm_hooks.answers.questions._TIME": {"match"},
        "optillm_hooks.solver.smtlib": {"sub"},
    }.items():
        assert any(methods == how for at, how in found.items() if at.partition(":")[0] == where)
    assert len(found) > 250
