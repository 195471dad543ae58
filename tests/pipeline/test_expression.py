"""The expression language: golden trees, errors with their column, and laws."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.errors import RequestRejected
from optillm_hooks.pipeline.expression import (
    MAX_BRANCHES,
    MAX_DEPTH,
    MAX_LENGTH,
    Call,
    Chain,
    Parallel,
    Tree,
    Value,
    branches,
    parse,
    unparse,
)


def call(name: str, column: int = 1, **args: Value) -> Call:
    return Call(name, tuple(args.items()), column)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        pytest.param("bon", call("bon"), id="one name"),
        pytest.param("  bon\n", call("bon", 3), id="blanks around it"),
        pytest.param("bon()", call("bon"), id="empty parentheses"),
        pytest.param("((bon))", call("bon", 3), id="parentheses around one"),
        pytest.param("bon(n=5)", call("bon", n=5), id="whole number"),
        pytest.param("bon ( n = 5 ; t = .5 )", call("bon", n=5, t=0.5), id="blanks inside"),
        pytest.param("bon(n=5,t=-1e-3)", call("bon", n=5, t=-0.001), id="comma and exponent"),
        pytest.param("a(x=true;y=false;z=null)", call("a", x=True, y=False, z=None), id="words"),
        pytest.param("a(x=True)", call("a", x="True"), id="another case is a text"),
        pytest.param("a(m=gpt-4o/mini:free)", call("a", m="gpt-4o/mini:free"), id="model name"),
        pytest.param('a(m="5")', call("a", m="5"), id="a quoted number is a text"),
        pytest.param(r'a(m="x\"y\\z;)")', call("a", m='x"y\\z;)'), id="escapes"),
        pytest.param('a(m="")', call("a", m=""), id="empty text"),
        pytest.param("a(m=[])", call("a", m=()), id="empty list"),
        pytest.param("a(m=[x;1,[y]])", call("a", m=("x", 1, ("y",))), id="nested list"),
        pytest.param("a(x=1.5.2)", call("a", x="1.5.2"), id="no number, so a text"),
        pytest.param("a(x=1_000)", call("a", x="1_000"), id="Python's underscores are a text"),
        pytest.param("a&b", Chain((call("a"), call("b", 3))), id="chain"),
        pytest.param("a|b", Parallel((call("a"), call("b", 3))), id="branches"),
        pytest.param(
            "a|b&c",
            Parallel((call("a"), Chain((call("b", 3), call("c", 5))))),
            id="a bar binds weaker than an ampersand",
        ),
        pytest.param(
            "(a|b)&c",
            Chain((Parallel((call("a", 2), call("b", 4))), call("c", 7))),
            id="parentheses group",
        ),
        pytest.param(
            "a&(b&c)", Chain((call("a"), call("b", 4), call("c", 6))), id="a chain in one is one"
        ),
        pytest.param(
            "a|(b|c)", Parallel((call("a"), call("b", 4), call("c", 6))), id="branches in branches"
        ),
    ],
)
def test_trees(text: str, tree: Tree) -> None:
    assert parse(text) == tree


@pytest.mark.parametrize(
    ("text", "column", "problem"),
    [
        ("", 1, "expected the name of an approach but the expression ends"),
        ("   ", 4, "expected the name of an approach but the expression ends"),
        ("&a", 1, "expected the name of an approach but got '&'"),
        ("a&", 3, "expected the name of an approach but the expression ends"),
        ("a||b", 3, "expected the name of an approach but got '|'"),
        ("a & | b", 5, "expected the name of an approach but got '|'"),
        ("()", 2, "expected the name of an approach but got ')'"),
        ("(a", 3, "expected ')' but the expression ends"),
        ("(a;b)", 3, "expected ')' but got ';'"),
        ("a)", 2, "unexpected ')'; expected '&', '|' or the end"),
        ("a b", 3, "unexpected 'b'; expected '&', '|' or the end"),
        ("a-b", 2, "unexpected '-'; expected '&', '|' or the end"),
        ("a(n=1)b", 7, "unexpected 'b'; expected '&', '|' or the end"),
        ("5a", 1, "expected the name of an approach but got '5'"),
        ("é", 1, "expected the name of an approach but got 'é'"),
        ("a(", 3, "expected the name of a parameter but the expression ends"),
        ("a(5)", 3, "expected the name of a parameter but got '5'"),
        ("a(n)", 4, "expected '=' but got ')'"),
        ("a(n=)", 5, "expected a value but got ')'"),
        ("a(n=", 5, "expected a value but the expression ends"),
        ("a(n=1", 6, "expected ';' or ')' but the expression ends"),
        ("a(n=1 2)", 7, "expected ';' or ')' but got '2'"),
        ("a(n=1;)", 7, "expected the name of a parameter but got ')'"),
        ("a(n=1;n=2)", 7, "parameter 'n' is given twice"),
        ("a(n=b=c)", 6, "expected ';' or ')' but got '='"),
        ('a(n="x)', 5, "the quoted text is not closed"),
        ('a(n="x\\', 5, "the quoted text is not closed"),
        ("a(n=[1)", 7, "expected ';' or ']' but got ')'"),
        ("a(n=[1;])", 8, "expected a value but got ']'"),
        ("a(n=(1))", 5, "expected a value but got '('"),
        ("\u2028a \x00", 4, "unexpected '\\x00'; expected '&', '|' or the end"),
    ],
)
def test_errors_name_the_column(text: str, column: int, problem: str) -> None:
    with pytest.raises(RequestRejected) as caught:
        parse(text)
    assert str(caught.value) == f"approach expression, column {column}: {problem}"
    assert caught.value.param == "optillm_approach"


@pytest.mark.parametrize(
    ("text", "column"),
    [("a(n=1,t=2)", 6), ("a(n=[1,2])", 7), ("a(m=x,y=1)", 6)],
    ids=["parameters", "values", "after a word"],
)
def test_a_comma_separates_only_where_it_may(text: str, column: int) -> None:
    with pytest.raises(RequestRejected, match=rf"column {column}: expected ';' or .* got ','"):
        parse(text, commas=False)
    assert parse(text) == parse(text.replace(",", ";"), commas=False)


def test_a_quoted_comma_is_a_comma() -> None:
    assert parse('a(m="x,y")', commas=False) == call("a", m="x,y")


@pytest.mark.parametrize(
    ("most", "one_more"),
    [
        pytest.param(
            "(" * MAX_DEPTH + "a" + ")" * MAX_DEPTH,
            "(" * (MAX_DEPTH + 1) + "a" + ")" * (MAX_DEPTH + 1),
            id="parentheses",
        ),
        pytest.param(
            f"a(x={'[' * (MAX_DEPTH + 1)}{']' * (MAX_DEPTH + 1)})",
            f"a(x={'[' * (MAX_DEPTH + 2)}{']' * (MAX_DEPTH + 2)})",
            id="lists",
        ),
        pytest.param("a" * MAX_LENGTH, "a" * (MAX_LENGTH + 1), id="length"),
    ],
)
def test_size_is_bounded(most: str, one_more: str) -> None:
    parse(most)
    with pytest.raises(RequestRejected, match=r"deeper than 16|longer than 4096"):
        parse(one_more)


@pytest.mark.parametrize("text", ["(" * 4000, "[" * 4000, "a(x=" + "[" * 4000, "a&" * 2000])
def test_hostile_input_is_refused_and_never_exhausts_the_stack(text: str) -> None:
    with pytest.raises(RequestRejected):
        parse(text)


def names(text: str) -> list[str]:
    return ["".join(call.name for call in chain) for chain in branches(parse(text))]


@pytest.mark.parametrize(
    ("text", "chains"),
    [
        ("a", ["a"]),
        ("a&b", ["ab"]),
        ("a|b", ["a", "b"]),
        ("a&(b|c)&d", ["abd", "acd"]),
        ("(a|b)&(c|d)", ["ac", "ad", "bc", "bd"]),
        ("a|b&(c|d&(e|f))", ["a", "bc", "bde", "bdf"]),
        ("a|a", ["a", "a"]),
    ],
)
def test_a_bar_inside_a_chain_multiplies(text: str, chains: list[str]) -> None:
    assert names(text) == chains


@pytest.mark.parametrize(
    ("most", "one_more"),
    [
        ("|".join("a" * MAX_BRANCHES), "|".join("a" * (MAX_BRANCHES + 1))),
        ("&".join(["(a|b)"] * 6), "&".join(["(a|b)"] * 7)),
        ("&".join(["(a|b)"] * 6), "&".join(["(a|b)"] * 600)),
        ("(a|b)&" * 5 + "(a|b)", "(a|b)&" * 5 + "(a|b)|a"),
    ],
    ids=["flat", "multiplied", "astronomic", "multiplied and flat"],
)
def test_branches_are_bounded(most: str, one_more: str) -> None:
    assert len(branches(parse(most))) == MAX_BRANCHES
    with pytest.raises(RequestRejected, match=f"more than {MAX_BRANCHES} concurrent branches"):
        branches(parse(one_more))


@pytest.mark.parametrize(
    ("text", "shortest"),
    [
        ("  a (n = 5 , m = [x, y]) & ( b | c ) ", "a(n=5;m=[x;y])&(b|c)"),
        ("((a))&((b))", "a&b"),
        ('a(x="1";y="a b";z="null";w="plain")', 'a(x="1";y="a b";z="null";w=plain)'),
        ("a()", "a"),
    ],
)
def test_unparse_is_the_shortest_form_without_commas(text: str, shortest: str) -> None:
    assert unparse(parse(text)) == shortest


scalars: st.SearchStrategy[Value] = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
) | st.text(max_size=12)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5)
identifiers = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,6}", fullmatch=True)
calls = st.builds(
    Call,
    identifiers,
    st.dictionaries(identifiers, values, max_size=3).map(lambda d: tuple(d.items())),
)


def _chains(stage: st.SearchStrategy[Call | Parallel]) -> st.SearchStrategy[Chain]:
    return st.lists(stage, min_size=2, max_size=3).map(lambda stages: Chain(tuple(stages)))


def _parallels(branch: st.SearchStrategy[Call | Chain]) -> st.SearchStrategy[Parallel]:
    return st.lists(branch, min_size=2, max_size=3).map(lambda found: Parallel(tuple(found)))


trees: st.SearchStrategy[Tree] = (
    calls
    | _chains(calls)
    | _parallels(calls | _chains(calls))
    | _chains(calls | _parallels(calls | _chains(calls)))
)


def without_columns(tree: Tree) -> Tree:
    match tree:
        case Call(name, args):
            return Call(name, args)
        case Chain(stages):
            return Chain(tuple(without_columns(stage) for stage in stages))  # type: ignore[misc] # a chain holds no chain
        case Parallel(found):
            return Parallel(tuple(without_columns(b) for b in found))  # type: ignore[misc] # nor this itself


@given(trees)
def test_parse_undoes_unparse(tree: Tree) -> None:
    text = unparse(tree)
    assert without_columns(parse(text, commas=False)) == without_columns(tree)
    assert repr(without_columns(parse(text))) == repr(without_columns(tree))  # True is not 1


@given(st.text(alphabet='ab1(=);,[]"\\&|-. \n\u00a0é', max_size=30))
def test_any_text_is_a_tree_or_is_refused_at_a_column_within_it(text: str) -> None:
    try:
        tree = parse(text)
    except RequestRejected as exc:
        found = re.match(r"approach expression, column (\d+): ", str(exc))
        assert found is not None
        assert 1 <= int(found[1]) <= len(text) + 1
    else:
        assert without_columns(parse(unparse(tree))) == without_columns(tree)
