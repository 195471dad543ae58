"""Parsing model names into an approach and a base model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import optillm_hooks.approaches  # noqa: F401 (registers moa, re2 and none)
from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway.model_names import (
    Named,
    from_deployment,
    from_prefix,
    refuse_second_prefix,
)


@pytest.mark.parametrize(
    ("name", "expression", "base"),
    [
        pytest.param("moa-gpt-4o-mini", "moa", "gpt-4o-mini", id="the base may hold dashes"),
        pytest.param("none-x", "none", "x", id="none"),
        pytest.param(
            "re2-meta-llama/Llama-3.1-8B:free",
            "re2",
            "meta-llama/Llama-3.1-8B:free",
            id="base with a slash",
        ),
        pytest.param("moa|re2-m", "moa|re2", "m", id="branches"),
        pytest.param("re2&moa-m", "re2&moa", "m", id="chain"),
        pytest.param("nope&moa-m", "nope&moa", "m", id="unknown names are for the plan to refuse"),
        pytest.param("(moa|re2)&moa-m", "(moa|re2)&moa", "m", id="group"),
        pytest.param(
            "moa(models=[a-b;c-d])-m-n", "moa(models=[a-b;c-d])", "m-n", id="dash in a list"
        ),
        pytest.param(
            "moa(models=[a];aggregator=b-c)-m",
            "moa(models=[a];aggregator=b-c)",
            "m",
            id="dash after a list",
        ),
        pytest.param(
            'moa(aggregator="x)-y")-m', 'moa(aggregator="x)-y")', "m", id="dash in quotes"
        ),
        pytest.param(r'moa(aggregator="\"-")-m', r'moa(aggregator="\"-")', "m", id="escaped quote"),
        pytest.param("moa(temperature=-1)-m", "moa(temperature=-1)", "m", id="minus"),
        pytest.param("moa)-m", "moa)", "m", id="unbalanced is for the grammar to refuse"),
    ],
)
def test_an_approach_in_front_is_read(name: str, expression: str, base: str) -> None:
    assert from_prefix(name) == Named(expression, base)


@pytest.mark.parametrize(
    "name",
    [
        "gpt-4o-mini",
        "MOA-m",
        "mo-a",
        "moax-m",
        "self-consistency-m",
        "-m",
        "",
        "-",
        "openai/moa-m",
        "a/b(c)-d",
        "model",
    ],
)
def test_a_model_is_no_approach(name: str) -> None:
    assert from_prefix(name) is None


@pytest.mark.parametrize("name", ["moa", "moa-", "moa|re2", "moa()-", "re2&moa-"])
def test_a_missing_base_is_refused_and_says_how(name: str) -> None:
    with pytest.raises(RequestRejected, match=r"lacks a base model: write .*-<model>") as caught:
        from_prefix(name)
    assert caught.value.param == "model"


def test_a_missing_parenthesis_is_named_where_it_hides_the_base() -> None:
    with pytest.raises(RequestRejected, match="column 5: expected the name of a parameter"):
        from_prefix("moa(-gpt-4o")


def test_a_long_name_is_shortened_in_the_message() -> None:
    with pytest.raises(RequestRejected) as caught:
        from_prefix("moa|" + "&".join(["re2"] * 500))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("model", "expression", "base"),
    [
        ("moa/gpt-4o", "moa", "gpt-4o"),
        ("optillm/moa/gpt-4o", "moa", "gpt-4o"),
        ("moa/openai/gpt-4o", "moa", "openai/gpt-4o"),
        ("moa(models=[a/b])/c/d", "moa(models=[a/b])", "c/d"),
        ("re2&(moa|none)/x", "re2&(moa|none)", "x"),
    ],
)
def test_a_deployment_is_expression_and_base(model: str, expression: str, base: str) -> None:
    assert from_deployment(model) == Named(expression, base)


@pytest.mark.parametrize(
    "model", ["", "moa", "moa/", "/x", "optillm/", "optillm/moa", "*", "optillm/*"]
)
def test_a_deployment_without_both_parts_is_refused(model: str) -> None:
    with pytest.raises(RequestRejected, match="is not <expression>/<base model>"):
        from_deployment(model)


@pytest.mark.parametrize("base", ["moa-x", "none-x", "re2&moa-x", "moa(n=1)-x"])
def test_two_approaches_with_a_dash_are_refused_and_say_how(base: str) -> None:
    with pytest.raises(RequestRejected, match=r"write re2&.*-… .* or re2\|.*-…"):
        refuse_second_prefix(Named("re2", base))


@pytest.mark.parametrize("base", ["gpt-4o", "moa", "x", "openai/moa-x", ""])
def test_a_base_that_is_a_model_is_left_alone(base: str) -> None:
    refuse_second_prefix(Named("re2", base))


@given(st.text(alphabet='moare2-|&()[]";/ x', max_size=24))
def test_any_name_is_a_model_an_approach_or_refused(name: str) -> None:
    try:
        named = from_prefix(name)
    except RequestRejected:
        return
    if named is not None:
        assert f"{named.expression}-{named.base}" == name
        assert named.base
