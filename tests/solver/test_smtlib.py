"""The parser of SMT-LIB scripts: Z3 receives exactly what was parsed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.solver.client import Formalisation, FormalisationBroken, solve
from optillm_hooks.solver.smtlib import (
    MAX_CHECKS,
    ScriptError,
    commands,
    parts,
    plain,
    run_script,
)

ATOMS = st.sampled_from(["x", "check-sat", "12", "0.5", "#x1F", ":named", "|a b;|", "=>", "a!1"])
STRINGS = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "Zs")), max_size=8).map(
    lambda text: '"' + text.replace('"', '""') + '"'
)
TERMS = st.recursive(
    ATOMS | STRINGS,
    lambda inner: st.lists(inner, max_size=3).map(lambda terms: f"({' '.join(terms)})"),
    max_leaves=6,
)
SCRIPTS = st.lists(
    st.lists(TERMS, max_size=4).map(lambda terms: f"({' '.join(terms)})"), max_size=3
)


@given(SCRIPTS)
def test_writing_what_was_read_reads_back_the_same(script: list[str]) -> None:
    read = commands("\n".join(script))
    assert len(read) == len(script)
    assert [commands(plain(command))[0] for command in read] == read


@given(SCRIPTS)
def test_the_parts_of_a_list_make_up_the_list(script: list[str]) -> None:
    for command in commands(" ".join(script)):
        assert ["(", *(token for part in parts(command) for token in part), ")"] == command


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read = commands(text)
    except ScriptError:
        return
    assert all(command[0] == "(" and command[-1] == ")" for command in read)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        pytest.param("(a ; (b)\n c)", ["(", "a", "c", ")"], id="a comment"),
        pytest.param(
            '(a "x ; (y" b)', ["(", "a", '"x ; (y"', "b", ")"], id="no comment in a string"
        ),
        pytest.param('("a""b")', ["(", '"a""b"', ")"], id="a doubled quote"),
        pytest.param('("\u00e9")', ["(", '"\\u{e9}"', ")"], id="other alphabets in strings"),
        pytest.param("(|a (b|)", ["(", "|a (b|", ")"], id="a quoted symbol"),
    ],
)
def test_tokens(text: str, tokens: list[str]) -> None:
    assert commands(text) == [tokens]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        pytest.param("(a", "1 closing parentheses are missing", id="an open command"),
        pytest.param("a", "expected '('", id="a bare word"),
        pytest.param("(a))", "expected '('", id="one too many"),
        pytest.param("(|a\\|)", "unreadable text", id="a backslash in a quoted symbol"),
        pytest.param('(include "x")', "'include' is not available", id="another file"),
        pytest.param("(|check-sat|)", "is not available", id="a quoted command"),
        pytest.param("(()", "1 closing parentheses", id="a list as command"),
        pytest.param("((check-sat))", "'(' is not available", id="a command in a list"),
        pytest.param("(" * 2000 + ")" * 2000, "nested more than", id="too deep"),
    ],
)
def test_what_is_refused_before_z3_sees_it(script: str, message: str) -> None:
    with pytest.raises(ScriptError, match=message.replace("(", r"\(")):
        run_script(script, 1.0)


@pytest.mark.anyio
async def test_a_script_has_no_more_checks_than_its_maximum() -> None:
    """In a worker: Z3 takes away the process's files."""
    most = Formalisation("smtlib", "(check-sat)" * MAX_CHECKS)
    found = await solve(most, seconds=30, memory_mb=512)
    assert found.statuses == ("sat",) * MAX_CHECKS
    more = Formalisation("smtlib", most.text + "(check-sat)")
    with pytest.raises(FormalisationBroken, match=f"more than {MAX_CHECKS} checks"):
        await solve(more, seconds=30, memory_mb=512)
