"""Checking answers against `response_format`."""

import json

import pytest

from optillm_hooks.answers.response_format import fit
from optillm_hooks.types import Json

POINT: Json = {
    "type": "object",
    "properties": {"x": {"type": "integer"}},
    "required": ["x"],
    "additionalProperties": False,
}


def schema(inner: Json) -> Json:
    return {"type": "json_schema", "json_schema": {"name": "point", "schema": inner}}


@pytest.mark.parametrize(
    ("text", "response_format", "expected"),
    [
        pytest.param("anything", None, True, id="no format"),
        pytest.param("anything", {"type": "text"}, True, id="text"),
        pytest.param('{"x": 1}', {"type": "json_object"}, True, id="an object"),
        pytest.param("[1]", {"type": "json_object"}, False, id="a list is no object"),
        pytest.param('```json\n{"x": 1}\n```', {"type": "json_object"}, False, id="in a fence"),
        pytest.param('{"x": 1}', schema(POINT), True, id="fits the schema"),
        pytest.param('{"x": "1"}', schema(POINT), False, id="wrong type"),
        pytest.param("{}", schema(POINT), False, id="a field is missing"),
        pytest.param('"abc"', schema({"pattern": "^[a-c]+$"}), True, id="fits the pattern"),
        pytest.param('"abd"', schema({"pattern": "^[a-c]+$"}), False, id="not the pattern"),
        pytest.param('"abd"', schema({"pattern": "\\p{L}"}), None, id="not Python's pattern"),
        pytest.param('{"x": 1}', schema({"type": "nonsense"}), None, id="a bad schema is not ours"),
        pytest.param('{"x": 1}', schema("nonsense"), None, id="no schema but a text"),
        pytest.param('{"x": 1}', {"type": "json_schema"}, True, id="no schema at all"),
    ],
)
def test_fit(text: str, response_format: Json, expected: bool | None) -> None:
    assert fit([text], response_format) is expected


def test_every_text_has_to_fit() -> None:
    assert fit(['{"x": 1}', '{"x": 2}'], schema(POINT)) is True
    assert fit(['{"x": 1}', '{"x": "2"}'], schema(POINT)) is False


@pytest.mark.parametrize(
    ("items", "unique"),
    [
        ([1, True, "1", None, [1], [True], {"a": 1}, {"a": True}, [], {}, 0, False], True),
        ([1, 1.0], False),
        ([{"a": 1, "b": [2]}, {"b": [2.0], "a": 1}], False),
        ([[1, 2], [2, 1]], True),
        ([], True),
    ],
)
def test_unique_items(items: Json, unique: bool) -> None:
    """As in the standard: numbers are equal by value, and true is no number."""
    assert fit([json.dumps(items)], schema({"uniqueItems": True})) is unique
    assert fit([json.dumps(items)], schema({"uniqueItems": False})) is True


def test_a_schema_cannot_reach_the_network_or_the_disk() -> None:
    for reference in ("http://127.0.0.1:9/schema.json", "file:///etc/passwd"):
        assert fit(["{}"], schema({"$ref": reference})) is None


@pytest.mark.parametrize(
    ("text", "inner", "expected"),
    [
        pytest.param("[" * 100_000, {}, False, id="a reply nested too deep to read"),
        pytest.param("[]", {"$schema": []}, None, id="a schema's version that is no text"),
        pytest.param("1e400", {"multipleOf": 0.1}, None, id="a number beyond what can be checked"),
        pytest.param("[" * 900 + "]" * 900, {"items": {"$ref": "#"}}, None, id="deep references"),
    ],
)
def test_nothing_in_schema_or_reply_is_an_error(
    text: str, inner: Json, expected: bool | None
) -> None:
    assert fit([text], schema(inner)) is expected
