"""Tags in a request, on every route's form of it: which one counts, and that none is left."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.gateway.tags import read_tags
from optillm_hooks.types import Json


def tag(approach: str) -> str:
    return f"<optillm_approach>{approach}</optillm_approach>"


def turn(role: Json, content: Json) -> dict[str, Json]:
    return {"role": role, "content": content}


def text(kind: str, value: str) -> dict[str, Json]:
    return {"type": kind, "text": value}


OTHER_PARTS: list[Json] = [
    text("tool_result", tag("moa")),
    text("document", tag("moa")),
    text("file", tag("moa")),
    text("input_text", tag("moa")),
    text("TEXT", tag("moa")),
    {"text": tag("moa")},
    {"type": ["text"], "text": tag("moa")},
    {"type": "document", "source": text("text", tag("moa"))},
    {"type": "document", "title": tag("moa"), "context": tag("moa")},
    {"type": "search_result", "content": [text("text", tag("moa"))]},
    tag("moa"),
    [text("text", tag("moa"))],
]
"""Parts of a message that are not its text."""


@pytest.mark.parametrize(
    ("request_", "approach", "changed"),
    [
        pytest.param({"messages": [turn("user", "hi")]}, None, {}, id="no tag"),
        pytest.param(
            {"messages": [turn("user", f"{tag('moa')} hi")]},
            "moa",
            {"messages": [turn("user", "hi")]},
            id="last user turn",
        ),
        pytest.param(
            {"messages": [turn("system", f"Be terse.{tag('moa')}"), turn("user", "hi")]},
            "moa",
            {"messages": [turn("system", "Be terse."), turn("user", "hi")]},
            id="system message",
        ),
        pytest.param(
            {"messages": [turn("developer", tag("moa")), turn("user", "hi")]},
            "moa",
            {"messages": [turn("developer", ""), turn("user", "hi")]},
            id="developer message",
        ),
        pytest.param(
            {"messages": [turn("system", tag("re2")), turn("user", f"hi {tag('moa')}")]},
            "re2",
            {"messages": [turn("system", ""), turn("user", "hi ")]},
            id="the system's is stronger, both are taken out",
        ),
        pytest.param(
            {"messages": [turn("user", tag("re2")), turn("system", "x"), turn("user", tag("moa"))]},
            "moa",
            {"messages": [turn("user", tag("re2")), turn("system", "x"), turn("user", "")]},
            id="an earlier turn chooses nothing and keeps its text",
        ),
        pytest.param(
            {"messages": [turn("user", f"{tag('re2')} a"), turn("system", "later, without a tag")]},
            "re2",
            {"messages": [turn("user", "a"), turn("system", "later, without a tag")]},
            id="a later system message undoes nothing",
        ),
        pytest.param(
            {
                "messages": [
                    turn("user", "hi"),
                    turn("assistant", tag("moa")),
                    turn("tool", tag("moa")),
                ]
            },
            None,
            {},
            id="neither an answer nor a tool's result",
        ),
        pytest.param(
            {"messages": [turn("user", f"{tag('moa')}a{tag('re2')}b")]},
            "moa",
            {"messages": [turn("user", "ab")]},
            id="the first of several, all are taken out",
        ),
        pytest.param(
            {"messages": [turn("user", f"{tag(chr(10) + ' moa' + chr(10))}hi")]},
            "moa",
            {"messages": [turn("user", "hi")]},
            id="over several lines, blanks around it",
        ),
        pytest.param(
            {"messages": [turn("user", "<OptiLLM_Approach>moa</OPTILLM_APPROACH>hi")]},
            "moa",
            {"messages": [turn("user", "hi")]},
            id="in another case",
        ),
        pytest.param(
            {"messages": [turn("user", f"<OPTILLM_APPROACH>moa</OPTILLM_APPROACH>{'hi ' * 9999}")]},
            "moa",
            {"messages": [turn("user", "hi " * 9999)]},
            id="capitals in a long message",
        ),
        pytest.param(
            {
                "messages": [
                    turn(
                        "user",
                        [
                            text("text", f"{tag('moa')}hi"),
                            {"type": "image_url", "image_url": {"url": tag("re2")}},
                        ],
                    )
                ]
            },
            "moa",
            {
                "messages": [
                    turn(
                        "user",
                        [
                            text("text", "hi"),
                            {"type": "image_url", "image_url": {"url": tag("re2")}},
                        ],
                    )
                ]
            },
            id="in a text part, not in an image's address",
        ),
        pytest.param(
            {"messages": [turn("user", [{"type": "tool_result", "content": tag("moa")}])]},
            None,
            {},
            id="not in a tool result of the messages route",
        ),
        pytest.param(
            {
                "messages": [
                    turn("user", [{"type": "tool_result", "content": [text("text", tag("moa"))]}])
                ]
            },
            None,
            {},
            id="nor in its parts",
        ),
        *(
            pytest.param({"messages": [turn("user", [part])]}, None, {}, id=f"not in {part!r}"[:40])
            for part in OTHER_PARTS
        ),
        pytest.param(
            {"messages": [turn("user", text("text", tag("moa")))]}, None, {}, id="no list of parts"
        ),
        pytest.param(
            {"messages": [{"type": "file", **turn("user", tag("moa"))}]}, None, {}, id="no message"
        ),
        pytest.param(
            {"input": [turn("user", [text("text", tag("moa"))])]}, None, {}, id="no input_text"
        ),
        pytest.param(
            {"input": [{"type": "file_search_call", **turn("user", tag("moa"))}]},
            None,
            {},
            id="no message of the responses route",
        ),
        pytest.param(
            {"input": [{"type": "message", **turn("user", tag("moa"))}]},
            "moa",
            {"input": [{"type": "message", **turn("user", "")}]},
            id="a message that says so",
        ),
        pytest.param(
            {"system": f"Be terse.{tag('moa')}", "messages": [turn("user", "hi")]},
            "moa",
            {"system": "Be terse."},
            id="system text of the messages route",
        ),
        pytest.param(
            {"system": [text("text", tag("moa"))], "messages": [turn("user", "hi")]},
            "moa",
            {"system": [text("text", "")]},
            id="system parts of the messages route",
        ),
        pytest.param(
            {"instructions": tag("moa"), "input": "hi"},
            "moa",
            {"instructions": ""},
            id="instructions",
        ),
        pytest.param({"input": f"{tag('moa')} hi"}, "moa", {"input": "hi"}, id="input text"),
        pytest.param(
            {"input": [turn("user", [text("input_text", f"{tag('moa')}hi")])]},
            "moa",
            {"input": [turn("user", [text("input_text", "hi")])]},
            id="input turns",
        ),
        pytest.param(
            {"input": [{"type": "function_call_output", "output": tag("moa")}]},
            None,
            {},
            id="not in a function's output",
        ),
        pytest.param({"prompt": f"hi {tag('moa')}"}, "moa", {"prompt": "hi "}, id="prompt"),
        pytest.param({"prompt": [tag("moa"), "b"]}, "moa", {"prompt": ["", "b"]}, id="prompts"),
        pytest.param({"prompt": [1, 2, 3]}, None, {}, id="tokens"),
        pytest.param(
            {"messages": [turn("user", "<optillm_approach>moa")]}, None, {}, id="never closed"
        ),
        pytest.param(
            {"messages": [turn("user", "moa</optillm_approach>")]}, None, {}, id="never opened"
        ),
        pytest.param({"messages": None, "prompt": None}, None, {}, id="null"),
        pytest.param({"messages": "moa"}, None, {}, id="messages that are no list"),
        pytest.param({"messages": [1, None, "x", {"role": "user"}]}, None, {}, id="odd messages"),
        pytest.param(
            {"messages": [turn("user", {"text": 5}), turn([], "x")]}, None, {}, id="odd types"
        ),
        pytest.param({}, None, {}, id="nothing"),
    ],
)
def test_tags(request_: dict[str, Json], approach: str | None, changed: dict[str, Json]) -> None:
    before = json.dumps(request_)
    assert read_tags(request_) == (approach, changed)
    assert json.dumps(request_) == before, "the request itself was changed"


def test_a_tag_in_a_long_text_is_found() -> None:
    long = "x" * 100_000
    found = read_tags({"messages": [turn("user", f"{long}{tag('moa')}{long}")]})
    assert found.approach == "moa"
    assert found.changed == {"messages": [turn("user", long + long)]}


def test_nesting_without_end_is_no_error() -> None:
    nested: Json = tag("moa")
    for _ in range(5000):
        nested = [nested]
    assert read_tags({"messages": [turn("user", nested)], "input": nested}).approach is None


def test_many_openings_take_no_more_than_linear_time() -> None:
    """Twenty thousand tags that are never closed would take minutes if each were searched for."""
    assert read_tags({"prompt": "<optillm_approach>" * 20_000}).approach is None


@given(st.text(max_size=20), st.text(alphabet="moa&|() ", max_size=8), st.text(max_size=20))
def test_a_tag_is_taken_out_and_the_rest_is_kept(before: str, approach: str, after: str) -> None:
    content = f"{before}{tag(approach)}{after}"
    found = read_tags({"messages": [turn("user", content)]})
    assert found.approach == (approach.strip() or None)
    rest = after[1:] if after[:1] in tuple(" \t\n\r\f\v") else after
    assert found.changed == {"messages": [turn("user", f"{before}{rest}")]}
