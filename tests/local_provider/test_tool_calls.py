"""Tool calls: tools in the prompt, calls in the model's own format, and results in the prompt."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import litellm
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.decoding.cot_decoding import CotSettings
from optillm_hooks.errors import RequestRejected
from optillm_hooks.local_provider.batch import Batch, Capacity
from optillm_hooks.local_provider.chat_format import ChatFormat
from optillm_hooks.local_provider.choice_output import ChoiceOutput
from optillm_hooks.local_provider.custom_llm import PROVIDER, LocalProvider, _Chunks
from optillm_hooks.local_provider.engine import Engine
from optillm_hooks.local_provider.engine_request import Choice, EngineRequest, Piece
from optillm_hooks.local_provider.request import parse_request
from optillm_hooks.local_provider.tool_calls.base import CallFormat
from optillm_hooks.local_provider.tool_calls.detection import form_of
from optillm_hooks.local_provider.tool_calls.finder import CallFinder
from optillm_hooks.local_provider.tool_calls.json_calls import HERMES, LLAMA, MISTRAL
from optillm_hooks.local_provider.tool_calls.schema import alternatives, typed
from optillm_hooks.local_provider.tool_calls.tagged_calls import QWEN_CODER
from optillm_hooks.local_provider.tool_calls.tools import Tools
from optillm_hooks.types import ToolCall
from tests.local_provider import tiny

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.id }}={{ c.function | tojson }}{% endfor %}"
    "{% if m.tool_call_id %} for {{ m.tool_call_id }}{% endif %}<|im_end|>{% endfor %}"
    "<|im_start|>assistant\n"
)
LISTED = "{% if tools %}{{ tools | tojson }}{% endif %}"
TEMPLATES = {
    "hermes": LISTED + '<tool_call>\n{"name": ..., "arguments": ...}\n</tool_call>' + TURNS,
    "mistral": "[AVAILABLE_TOOLS]" + LISTED + "{# [TOOL_CALLS] #}" + TURNS,
    "llama": "Environment: ipython\n" + LISTED + '{"name": ..., "parameters": ...}' + TURNS,
}
FORMS = {"hermes": HERMES, "mistral": MISTRAL, "llama": LLAMA}
OTHERS = {
    "no tools": TURNS,
    "another": "<<call>> name {arguments}" + LISTED,
}

WEATHER = {
    "type": "object",
    "properties": {
        "place": {"type": "string", "maxLength": 9},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["place", "days"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, dict[str, Any]] = {"weather": WEATHER, "now": {"type": "object"}}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
HI = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_call_format_is_detected_from_the_chat_template(family: str) -> None:
    assert form_of(TEMPLATES[family]) is FORMS[family]


@pytest.mark.parametrize("template", OTHERS.values(), ids=OTHERS)
def test_a_template_with_no_form_or_another_has_none_of_ours(template: str) -> None:
    assert form_of(template) is None


def found(
    form: CallFormat, pieces: list[str], *, parallel: bool = True
) -> tuple[str, list[tuple[str, Any]]]:
    finder = CallFinder(Tools(form, SCHEMAS, parallel))
    parts = [*(finder.feed(piece) for piece in pieces), finder.close()]
    calls = [call for part in parts for call in part.calls]
    assert len({call.id for call in calls}) == len(calls) == finder.calls
    assert all(len(call.id) == 9 and call.id.isalnum() for call in calls)
    return "".join(part.text for part in parts), [(c.name, json.loads(c.arguments)) for c in calls]


OSLO = '{"name": "weather", "arguments": {"place": "Oslo", "days": 2}}'
OSLO_CALL = ("weather", {"place": "Oslo", "days": 2})
NOW = '{"name": "now", "arguments": {}}'
TRICKY = '{"name": "now", "arguments": {"a": "</tool_call> \\" é [TOOL_CALLS]"}}'
TRICKY_CALL = ("now", {"a": '</tool_call> " é [TOOL_CALLS]'})
REPLIES: list[tuple[CallFormat, str, str, list[Any]]] = [
    (HERMES, f"<tool_call>\n{OSLO}\n</tool_call>", "", [OSLO_CALL]),
    (HERMES, f"Let me see.\n<tool_call>{OSLO}</tool_call>\n", "Let me see.", [OSLO_CALL]),
    (
        HERMES,
        f"<tool_call>{OSLO}</tool_call>\n<tool_call>{NOW}</tool_call>",
        "",
        [OSLO_CALL, ("now", {})],
    ),
    (HERMES, f"<tool_call>{TRICKY}</tool_call>", "", [TRICKY_CALL]),
    (HERMES, f"a <tool_call>{OSLO}</tool_call> then b", "a then b", [OSLO_CALL]),
    (MISTRAL, f"[TOOL_CALLS] [{OSLO}, {NOW}]", "", [OSLO_CALL, ("now", {})]),
    (MISTRAL, f"Well. [TOOL_CALLS][{TRICKY}]", "Well.", [TRICKY_CALL]),
    (LLAMA, OSLO.replace("arguments", "parameters"), "", [OSLO_CALL]),
    (LLAMA, "\n<|python_tag|>" + NOW.replace("arguments", "parameters"), "", [("now", {})]),
]
TEXTS: list[tuple[CallFormat, str]] = [
    (HERMES, "x <tool_call> is how calls begin"),
    (HERMES, "<tool_call>{oops}</tool_call> and on"),
    (HERMES, f"<tool_call>{OSLO}"),
    (HERMES, f"<tool_call>{OSLO[:-1]}</tool_call>"),
    (HERMES, '<tool_call>{"name": "rm", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "now", "arguments": "{}"}</tool_call>'),
    (HERMES, '<tool_call>{"name": "now"}</tool_call>'),
    (HERMES, '<tool_call>{"name": ["now"], "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "now", "arguments": {"a": 1e999}}</tool_call>'),
    (HERMES, "<tool_call>" + "[" * 5000 + "</tool_call>"),
    (HERMES, "<tool_call>[]</tool_call>"),
    (HERMES, OSLO),
    (HERMES, " \n "),
    (MISTRAL, OSLO),
    (MISTRAL, f"[TOOL_CALLS] [{OSLO}"),
    (MISTRAL, f"[TOOL_CALLS] [{OSLO}] there"),
    (LLAMA, OSLO),
    (LLAMA, "Say " + OSLO.replace("arguments", "parameters")),
    (LLAMA, '{"answer": 42}'),
    (LLAMA, '{"name": "weather", "parameters": 3}'),
    (LLAMA, "<|python_tag|>print(1)"),
    (LLAMA, '{"name": "now", "para'),
]


@pytest.mark.parametrize("size", [1, 4, 1000], ids="in pieces of {}".format)
@pytest.mark.parametrize(("form", "reply", "text", "calls"), REPLIES)
def test_calls_are_read_and_the_text_around_them_kept(
    form: CallFormat, reply: str, text: str, calls: list[Any], size: int
) -> None:
    pieces = [reply[i : i + size] for i in range(0, len(reply), size)]
    assert found(form, pieces) == (text, calls)


@pytest.mark.parametrize("size", [1, 4, 10_000], ids="in pieces of {}".format)
@pytest.mark.parametrize(("form", "reply"), TEXTS)
def test_what_only_looks_like_a_call_stays_text_to_the_letter(
    form: CallFormat, reply: str, size: int
) -> None:
    pieces = [reply[i : i + size] for i in range(0, len(reply), size)]
    assert found(form, pieces) == (reply, [])


PARTS = st.sampled_from(
    ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", OSLO, NOW, TRICKY, "[", "]",
     OSLO.replace("arguments", "parameters"), " ", "\n", "a", "<", "{", '"']
)  # fmt: skip


@given(
    form=st.sampled_from([HERMES, MISTRAL, LLAMA]),
    parts=st.lists(PARTS, max_size=8),
    cuts=st.lists(st.integers(0, 200), max_size=8),
    parallel=st.booleans(),
)
def test_calls_do_not_depend_on_how_the_text_arrives(
    form: CallFormat, parts: list[str], cuts: list[int], parallel: bool
) -> None:
    reply = "".join(parts)
    borders = [0, *sorted(cut for cut in cuts if cut < len(reply)), len(reply)]
    pieces = [reply[a:b] for a, b in itertools.pairwise(borders)]
    assert found(form, pieces, parallel=parallel) == found(form, [reply], parallel=parallel)


@pytest.mark.parametrize("form", [HERMES, MISTRAL], ids=["hermes", "mistral"])
def test_without_parallel_calls_only_the_first_counts(form: CallFormat) -> None:
    two = f"<tool_call>{OSLO}</tool_call> and <tool_call>{NOW}</tool_call> more"
    reply = two if form is HERMES else f"[TOOL_CALLS] [{OSLO}, {NOW}]"
    assert found(form, [reply], parallel=False) == ("", [OSLO_CALL])


def test_text_before_a_call_is_shown_immediately_and_a_marker_never() -> None:
    finder = CallFinder(Tools(HERMES, SCHEMAS))
    assert finder.feed("Let me ").text == "Let me"
    assert finder.feed("see <tool").text == " see"
    assert finder.feed("_call>" + OSLO).text == ""
    assert finder.feed("</tool_call>").calls[0].name == "weather"


def parse(**fields: Any) -> EngineRequest:
    return parse_request(HI, {"tools": TOOLS, "seed": 1, "max_tokens": 300, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "rm"}}}, "does not name a tool"),
        ({"tools": None, "tool_choice": "required"}, "does not name a tool"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "name.*pattern"),
        ({"tools": [{"type": "retrieval"}]}, "tools.0.type"),
        ({"tools": TOOLS * 65}, "at most 128"),
    ],
    ids=["unknown name", "no tools", "word", "name", "kind", "many"],
)
def test_malformed_tools_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestRejected, match=message):
        parse(**fields)


def test_tools_that_may_not_be_called_are_not_shown() -> None:
    assert parse(tool_choice="none").tools is None
    assert parse(tool_choice="auto").tools == TOOLS


@pytest.mark.parametrize("family", ["no tools", "another"])
def test_a_required_call_in_an_unknown_format_is_refused(family: str) -> None:
    chat_format = tiny.chat_format(OTHERS[family])
    with pytest.raises(RequestRejected, match=r"does not support tools|cannot be required to call"):
        chat_format.tools(parse(tool_choice="required"))
    if family == "another":
        assert chat_format.tools(parse()) is None


def test_calls_and_results_go_back_through_the_template() -> None:
    chat_format = tiny.chat_format(TEMPLATES["hermes"])
    call = {"id": "abc123def", "type": "function", "function": json.loads(OSLO)}
    call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    broken = {"id": "b", "function": {"name": "now", "arguments": "{"}}
    messages: list[dict[str, Any]] = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call, broken]},
        {"role": "tool", "tool_call_id": "abc123def", "content": "rain"},
        {"role": "assistant", "content": "It rains.", "tool_calls": []},
    ]
    ids = chat_format.encode(messages, TOOLS)
    prompt = b"".join(map(chat_format.token_bytes, ids)).decode()
    assert json.dumps(TOOLS) in prompt.replace("&#34;", '"')
    assert 'abc123def={"name": "weather", "arguments": {"place": "Oslo", "days": 2}}' in prompt
    assert 'b={"name": "now", "arguments": "{"}' in prompt
    assert "tool\nrain for abc123def" in prompt
    assert call["function"]["arguments"] == '{"place": "Oslo", "days": 2}'


def transcribed(chat_format: ChatFormat, reply: str, **fields: Any) -> Choice:
    """Return the output of a reply that a model writes token by token."""
    tools = chat_format.tools(parse(**fields))
    transcript = ChoiceOutput(0, chat_format, [], tools=tools)
    choice = Choice()
    for token in [*chat_format.encode_text(reply), tiny.END]:
        piece = transcript.add(token, None, last=False)
        if piece is not None:
            choice.add(piece)
        if transcript.finish_reason:
            return choice
    raise AssertionError("no end")


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_call_in_the_models_form_becomes_a_tool_call(family: str) -> None:
    """The markers of Mistral's and Llama's calls are special tokens, which text leaves out."""
    reply = {
        "hermes": f"Sure.\n<tool_call>\n{OSLO}\n</tool_call>",
        "mistral": f"Sure.[TOOL_CALLS] [{OSLO}]",
        "llama": "Sure.<|python_tag|>" + OSLO.replace("arguments", "parameters"),
    }
    chat_format = tiny.chat_format(TEMPLATES[family])
    choice = transcribed(chat_format, reply[family])
    assert choice.text == "Sure."
    assert choice.finish_reason == "tool_calls"
    assert [(call.name, json.loads(call.arguments)) for call in choice.tool_calls] == [OSLO_CALL]
    other = reply["mistral" if family != "mistral" else "hermes"]
    assert not transcribed(chat_format, other).tool_calls
    assert transcribed(chat_format, other).finish_reason == "stop"
    assert not transcribed(chat_format, reply[family], tool_choice="none").tool_calls


def test_without_parallel_calls_the_reply_ends_with_its_call() -> None:
    chat_format = tiny.chat_format(TEMPLATES["hermes"])
    two = f"<tool_call>{OSLO}</tool_call><tool_call>{NOW}</tool_call>"
    assert len(transcribed(chat_format, two).tool_calls) == 2
    one = transcribed(chat_format, two, parallel_tool_calls=False)
    assert [call.name for call in one.tool_calls] == ["weather"]
    assert one.finish_reason == "tool_calls"


@pytest.fixture(scope="module", params=TEMPLATES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    chat_format, runner = tiny.chat_format(TEMPLATES[request.param]), tiny.runner(2048)
    engine = Engine(request.param, lambda: Batch(runner, chat_format, Capacity()))
    yield engine
    engine.close()
    assert not list(runner.kv_cache.rows())


BIAS = {tiny.SPELLED[0] + 1: 5.0}  # the quotation mark, after the exclamation mark


def replies(engine: Engine, request: EngineRequest) -> list[Choice]:
    choices = [Choice() for _ in range(request.n)]
    for event in engine.stream_sync(request):
        if isinstance(event, Piece):
            choices[event.choice].add(event)
    return choices


def test_required_calls_are_made_and_obey_their_schemas(engine: Engine) -> None:
    closed = {"type": "object", "properties": {}, "additionalProperties": False}
    choices = replies(engine, parse(tool_choice="required", n=8, logit_bias=BIAS))
    ended = [choice for choice in choices if choice.finish_reason == "tool_calls"]
    assert len(ended) >= 6
    for choice in ended:
        assert choice.text == ""
        for call in choice.tool_calls:
            jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
            if call.name == "now":
                jsonschema.validate(json.loads(call.arguments), closed)
    assert {call.name for choice in ended for call in choice.tool_calls} == {"weather", "now"}


def test_a_named_tool_is_the_one_that_is_called(engine: Engine) -> None:
    named = {"type": "function", "function": {"name": "now"}}
    (choice,) = replies(engine, parse(tool_choice=named, parallel_tool_calls=False))
    assert [(call.name, call.arguments) for call in choice.tool_calls] == [("now", "{}")]
    assert choice.finish_reason == "tool_calls"


def test_with_a_schema_a_reply_is_an_answer_or_a_call(engine: Engine) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "answer"}}}
    request = parse(response_format=form, n=8, logit_bias=BIAS, parallel_tool_calls=False)
    for choice in replies(engine, request):
        assert (choice.text, len(choice.tool_calls)) in [('"answer"', 0), ("", 1)]


def test_a_required_call_takes_precedence_over_a_schema(engine: Engine) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "answer"}}}
    fields = {"tool_choice": "required", "parallel_tool_calls": False}
    for choice in replies(engine, parse(response_format=form, n=6, logit_bias=BIAS, **fields)):
        assert choice.text == ""
        assert choice.tool_calls


@pytest.mark.parametrize("form", [HERMES, MISTRAL], ids=["hermes", "mistral"])
def test_a_grammar_repeats_calls_only_with_parallel_calls(form: CallFormat) -> None:
    (several, one) = (
        Tools(form, SCHEMAS, many).rules(["now"], json.dumps) for many in (True, False)
    )
    assert ")*" in several.splitlines()[0]
    assert ")*" not in one.splitlines()[0]


def test_a_method_that_makes_one_reply_of_many_gives_calls_too(engine: Engine) -> None:
    request = parse(tool_choice="required", optillm_decoding={"cot_decoding": {"k": 3}})
    assert isinstance(request.decoding, CotSettings)
    (choice,) = replies(engine, request)
    assert choice.tool_calls or choice.finish_reason == "length"


def test_a_schema_of_a_tool_that_cannot_be_enforced_is_refused_where_it_would_have_to_be(
    engine: Engine,
) -> None:
    odd = {"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}
    with pytest.raises(RequestRejected, match=r"tools cannot be enforced: .*not"):
        replies(engine, parse(tools=[odd], tool_choice="required"))
    assert replies(engine, parse(tools=[odd], max_tokens=2))[0].finish_reason == "length"


NO_SCHEMAS: list[Any] = [
    {"properties": [1]},
    {"properties": {"a": {"type": 5}}},
    {"properties": {"a": {"enum": 5}}},
    {"properties": {"a": {"anyOf": [5]}}},
    {"properties": {"a": {"type": "string"}}, "required": 5},
]


@pytest.mark.parametrize("parameters", NO_SCHEMAS, ids=str)
def test_parameters_that_are_no_schema_are_refused_where_they_would_be_enforced(
    parameters: dict[str, Any],
) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    tools = Tools(QWEN_CODER, {"f": parameters})
    with pytest.raises(RequestRejected, match="no valid JSON schema"):
        tools.rules(["f"], json.dumps)
    assert parse(tools=[tool]).tools == [tool]


def test_references_that_multiply_their_alternatives_are_not_followed_for_long() -> None:
    many = {"anyOf": [{"$ref": "#/$defs/a"}] * 10}  # to 10⁸ alternatives
    schema = {"$defs": {"a": many}, "$ref": "#/$defs/a"}
    assert alternatives(schema) == [{}]
    assert typed("1", schema) == 1


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> litellm.Router:
    folder: Path = tmp_path_factory.mktemp("tooled")
    tiny.model(2048).save_pretrained(folder)
    tiny.tokenizer(TEMPLATES["hermes"]).save_pretrained(folder)
    litellm.custom_provider_map = [{"provider": PROVIDER, "custom_handler": LocalProvider()}]
    litellm.utils.custom_llm_setup()
    return litellm.Router(
        [
            {
                "model_name": "tooled",
                "litellm_params": {"model": f"{PROVIDER}/tooled"},
                "model_info": {"optillm_local": {"path": str(folder), "device": "cpu"}},
            }
        ]
    )


CALL: dict[str, Any] = {
    "model": "tooled",
    "messages": HI,
    "tools": TOOLS,
    "tool_choice": "required",
    "seed": 7,
    "n": 2,
    "max_tokens": 400,
    "logit_bias": {str(token): bias for token, bias in BIAS.items()},
}


@pytest.mark.anyio
@pytest.mark.usefixtures("litellm_in_this_loop")
@pytest.mark.filterwarnings("ignore:.*`ReadOnly` qualifier:UserWarning")
async def test_calls_come_whole_and_streamed_in_openais_shape(router: litellm.Router) -> None:
    whole = await router.acompletion(**CALL)
    expected = {}
    for choice in whole.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert all(call.type == "function" for call in choice.message.tool_calls)
        expected[choice.index] = [
            (call.function.name, call.function.arguments) for call in choice.message.tool_calls
        ]
    assert len(expected) == 2
    streamed: dict[int, dict[int, Any]] = {0: {}, 1: {}}
    reasons: dict[int, str | None] = {}
    async for chunk in await router.acompletion(**CALL, stream=True):
        for choice in chunk.choices:
            assert not choice.delta.content
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
            for call in choice.delta.tool_calls or []:
                assert call.index not in streamed[choice.index]
                assert call.id
                assert call.type == "function"
                streamed[choice.index][call.index] = (call.function.name, call.function.arguments)
    assert reasons == {0: "tool_calls", 1: "tool_calls"}
    for index, calls in expected.items():
        assert [streamed[index][i] for i in range(len(calls))] == calls


def test_no_chunk_of_a_stream_has_two_kinds_of_content_or_two_calls() -> None:
    calls = tuple(ToolCall(f"id{number}", "now", "{}") for number in (1, 2))
    made = _Chunks("m")
    chunks = [*made.of(Piece(0, "Well.", "Look.", tool_calls=calls)), *made.of(Piece(0, "So."))]
    shown = [
        (
            delta.role,
            delta.get("reasoning_content"),
            delta.content,
            [(call.index, call.id) for call in delta.tool_calls or []],
        )
        for chunk in chunks
        for delta in [chunk.choices[0].delta]
    ]
    assert shown == [
        ("assistant", "Look.", "", []),
        (None, None, "Well.", []),
        (None, None, None, [(0, "id1")]),
        (None, None, None, [(1, "id2")]),
        (None, None, "So.", []),
    ]


class Point(pydantic.BaseModel):
    x: int = pydantic.Field(ge=0, le=99)
    label: Literal["a", "b"]


@pytest.mark.anyio
@pytest.mark.usefixtures("litellm_in_this_loop")
@pytest.mark.filterwarnings("ignore:.*`ReadOnly` qualifier:UserWarning")
async def test_a_pydantic_model_is_a_form_whole_and_streamed(router: litellm.Router) -> None:
    call = {"model": "tooled", "messages": HI, "response_format": Point, "seed": 1}
    whole = (await router.acompletion(**call)).choices[0]
    assert whole.finish_reason == "stop"
    Point.model_validate_json(whole.message.content)
    chunks = [chunk async for chunk in await router.acompletion(**call, stream=True)]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.message.content
    assert len(chunks) > 5
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
    with pytest.raises(litellm.BadRequestError, match=r"response_format cannot be enforced.*not"):
        await router.acompletion(**{**call, "response_format": form})
