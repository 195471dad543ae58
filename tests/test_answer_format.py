"""Answers are checked against `response_format` without holding the event loop."""

import asyncio
import json
import time
from dataclasses import replace

import pytest

from optillm_hooks import answer_format
from optillm_hooks.answer_format import answers_fit
from optillm_hooks.types import Json

pytestmark = pytest.mark.anyio

OBJECTS = json.dumps([{"id": n, "name": f"n{n}"} for n in range(2000)])
AGAIN: Json = {"anyOf": [{"$ref": "#/$defs/a"}] * 2}
DOUBLING: Json = {"$defs": {"a": {"items": AGAIN, "type": "array"}}, "$ref": "#/$defs/a"}
CONSTS: Json = {"items": {"anyOf": [{"const": n} for n in range(500)]}}
WIDE: Json = {"properties": {f"f{n}": {"description": "x" * 60} for n in range(1600)}}


def schema(inner: Json) -> Json:
    return {"type": "json_schema", "json_schema": {"name": "point", "schema": inner}}


async def check(text: str, wanted: Json) -> bool | None:
    return await answers_fit([text], wanted, asyncio.get_running_loop().time() + 60)


async def test_a_list_of_thousands_of_objects_is_checked() -> None:
    unique = schema({"uniqueItems": True, "items": {"required": ["id"]}})
    assert await check(OBJECTS, unique) is True
    twice = f'{OBJECTS[:-1]}, {{"name": "n7", "id": 7}}]'
    assert await check(twice, unique) is False


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        pytest.param(json.dumps([499] * 8000), schema(CONSTS), id="many alternatives"),
        pytest.param(f'"{"a" * 40}!"', schema({"pattern": "^(a+)+$"}), id="a slow pattern"),
        pytest.param("[" * 40 + "1" + "]" * 40, schema(DOUBLING), id="doubling references"),
        pytest.param("{}", schema({"allOf": [WIDE] * 10}), id="a long schema"),
        pytest.param("5" * 2_000_000, {"type": "json_object"}, id="a long answer"),
    ],
)
async def test_what_takes_too_long_is_not_checked_and_the_loop_goes_on(
    text: str, wanted: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_format, "LIMITS", replace(answer_format.LIMITS, seconds=0.5))
    before = time.thread_time()
    assert await check(text, wanted) is None
    assert time.thread_time() - before < 0.1


async def test_a_schema_that_is_too_deep_is_not_checked() -> None:
    deep: Json = {}
    for _ in range(100_000):
        deep = {"items": deep}
    assert await check("[]", schema(deep)) is None


async def test_nothing_is_checked_after_the_deadline() -> None:
    now = asyncio.get_running_loop().time()
    assert await answers_fit(["{}"], schema({"type": "object"}), now - 1) is None


async def test_what_is_short_and_has_no_schema_needs_no_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def no_worker(*_: object) -> Json:
        raise AssertionError("no worker is needed")

    monkeypatch.setattr(answer_format, "ask_worker", no_worker)
    assert await check("anything", None) is True
    assert await check("{}", {"type": "json_object"}) is True
    assert await check("[]", {"type": "json_object"}) is False
