"""Checking answers against `response_format`."""

import pytest

from optillm_hooks.answers.response_format import fits
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
        pytest.param('{"x": 1}', schema({"type": "nonsense"}), True, id="a bad schema is not ours"),
        pytest.param('{"x": 1}', {"type": "json_schema"}, True, id="no schema at all"),
    ],
)
def test_fits(text: str, response_format: Json, expected: bool) -> None:
    assert fits(text, response_format) is expected


def test_a_schema_cannot_reach_the_network_or_the_disk() -> None:
    for reference in ("http://127.0.0.1:9/schema.json", "file:///etc/passwd"):
        assert fits("{}", schema({"$ref": reference}))


def test_a_schema_cannot_keep_us_busy_by_its_patterns() -> None:
    slow: Json = {"type": "string", "pattern": "^(a+)+$"}
    assert fits('"' + "a" * 40 + '!"', schema(slow))


def test_a_schema_cannot_keep_us_busy_by_its_references() -> None:
    again: Json = {"$ref": "#/$defs/a"}
    doubling: Json = {"type": "array", "items": {"anyOf": [again, again]}}
    text = "[" * 40 + "1" + "]" * 40
    assert fits(text, schema({"$defs": {"a": doubling}, "$ref": "#/$defs/a"}))


@pytest.mark.parametrize(
    ("text", "inner", "expected"),
    [
        pytest.param("[" * 100_000, {}, False, id="a reply nested too deep to read"),
        pytest.param("[]", {"$schema": []}, True, id="a schema's version that is no text"),
        pytest.param("1e400", {"multipleOf": 0.1}, True, id="a number beyond what can be checked"),
        pytest.param("[" * 900 + "]" * 900, {"items": {"$ref": "#"}}, True, id="deep references"),
    ],
)
def test_nothing_in_schema_or_reply_is_an_error(text: str, inner: Json, expected: bool) -> None:
    assert fits(text, schema(inner)) is expected
