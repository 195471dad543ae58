"""Tool calls in the formats of many model families, read from the chat template to the reply."""

import json
from typing import Any

import jsonschema
import pytest
import torch

from optillm_hooks.errors import RequestRejected
from optillm_hooks.local_provider.batch import Batch, Capacity
from optillm_hooks.local_provider.chat_format import ChatFormat
from optillm_hooks.local_provider.choice_output import ChoiceOutput
from optillm_hooks.local_provider.engine_request import (
    Choice,
    EngineRequest,
    Event,
    Piece,
    Submission,
)
from optillm_hooks.local_provider.request import parse_request
from optillm_hooks.local_provider.tool_calls.finder import CallFinder
from optillm_hooks.local_provider.tool_calls.tools import Tools
from tests.local_provider import tiny
from tests.local_provider.call_formats import CALL, FORMATS, SEARCH, TOOLS, Format

HI = [{"role": "user", "content": "Hi"}]


def chat_format(form: Format, *, special: bool = True) -> ChatFormat:
    template = "{# " + form.template.replace("#}", "") + " #}" + tiny.CHATML
    markers = form.special if special else ()
    return tiny.chat_format(template, [*tiny.WORDS, *markers], markers)


def parse(**fields: Any) -> EngineRequest:
    return parse_request(HI, {"tools": TOOLS, "max_tokens": 100, **fields})


def tools_of(form: Format, **fields: Any) -> Tools:
    tools = chat_format(form).tools(parse(**fields))
    assert tools is not None
    return tools


def named(calls: Any) -> list[Any]:
    return [(call.name, json.loads(call.arguments)) for call in calls]


def read(tools: Tools, *pieces: str) -> tuple[str, list[Any]]:
    """Return the text and the calls of a reply that comes in `pieces`."""
    finder = CallFinder(tools)
    parts = [*map(finder.feed, pieces), finder.close()]
    calls = [call for part in parts for call in part.calls]
    assert len({call.id for call in calls}) == len(calls)
    return "".join(part.text for part in parts), named(calls)


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_the_calls_of_a_family_are_read_wherever_its_reply_is_cut(form: Format) -> None:
    tools = tools_of(form)
    expected = (form.text, form.calls)
    assert read(tools, *form.reply) == expected
    for cut in range(len(form.reply)):
        assert read(tools, form.reply[:cut], form.reply[cut:]) == expected


@pytest.mark.parametrize("special", [True, False], ids=["special tokens", "plain tokens"])
@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_the_markers_of_a_family_may_be_special_tokens(form: Format, special: bool) -> None:
    made = chat_format(form, special=special)
    choice = written(made, form.reply, made.tools(parse()))
    assert (choice.text, named(choice.tool_calls)) == (form.text, form.calls)
    assert choice.finish_reason == "tool_calls"


def written(made: ChatFormat, reply: str, tools: Tools | None, **fields: Any) -> Choice:
    """Return the output of a reply that a model writes token by token."""
    output, choice = ChoiceOutput(0, made, [], tools=tools, **fields), Choice()
    for token in [*made.encode_text(reply), tiny.END]:
        if piece := output.add(token, None, last=False):
            choice.add(piece)
        if output.finish_reason:
            break
    return choice


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_a_marker_in_a_string_of_a_call_does_not_end_it(form: Format) -> None:
    tools = tools_of(form)
    text = f"a {tools.form.spans[0].closing if tools.form.spans else ']'} b"
    reply = form.reply.replace("7 < 8", text)
    calls = [(CALL[0], {**CALL[1], "query": text}), *form.calls[1:]]
    assert read(tools, *reply) == read(tools, reply) == (form.text, calls)


TAGGED = ("qwen3-coder", "seed", "minimax", "glm 4.5", "glm 4.7", "deepseek 3.2", "deepseek 4")


@pytest.mark.parametrize("name", TAGGED)
def test_the_blanks_around_a_text_between_tags_belong_to_it(name: str) -> None:
    form = FORMATS[name]
    text = "\n\n    return 7\n\n "
    call = (CALL[0], {**CALL[1], "query": text})
    assert read(tools_of(form), *form.reply.replace("7 < 8", text))[1][0] == call


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_a_call_of_an_unknown_tool_stays_text_to_the_letter(form: Format) -> None:
    tools = tools_of(form)
    reply = form.reply.replace("search", "erase").replace("now", "rm")
    assert read(tools, *reply) == (reply, [])
    assert read(tools, reply) == (reply, [])


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_no_beginning_of_a_call_is_an_error_or_gets_lost(form: Format) -> None:
    tools = tools_of(form)
    for end in range(len(form.reply)):
        text, calls = read(tools, form.reply[:end])
        assert calls == form.calls[: len(calls)]
        assert calls or text == form.reply[:end]


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_without_parallel_calls_a_family_makes_one(form: Format) -> None:
    tools = tools_of(form, parallel_tool_calls=False)
    assert read(tools, *form.reply)[1] == [CALL]


def sampled(made: ChatFormat, request: EngineRequest, seed: int) -> str:
    """Return a random reply that the grammar of `request` allows, without its end token."""
    tools, reasoning = made.tools(request), made.reasoning()
    grammar = made.reply_grammar(request, tools, reasoning, opened=False, thinks=False)
    assert grammar is not None
    constraint = grammar.constraint(5.0)
    assert constraint is not None
    rng = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    size = tiny.SPELLED.stop + len(made.end_ids) + 99
    while not ids or ids[-1] not in made.end_ids:
        assert len(ids) < 600, made.decode(ids)
        logits = torch.randn((1, size), generator=rng)
        logits[0, sorted(made.end_ids)] += 2.0
        token = int(made.grammars.mask(logits, [constraint]).argmax())
        constraint.accept(token)
        ids.append(token)
    return b"".join(map(made.token_bytes, ids[:-1])).decode(errors="replace")


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_required_calls_of_a_family_obey_their_schemas(form: Format) -> None:
    made = chat_format(form)
    request = parse(tool_choice="required")
    tools = made.tools(request)
    assert tools is not None
    for seed in range(3):
        text, calls = read(tools, sampled(made, request, seed))
        assert not text.strip()
        assert calls
        for name, arguments in calls:
            jsonschema.validate(arguments, tools.schemas[name])


UNITS = {
    "type": "object",
    "$defs": {"Unit": {"enum": ["c", "f"], "type": "string"}},
    "properties": {
        "unit": {"$ref": "#/$defs/Unit"},
        "side": {"anyOf": [{"enum": ["x", "1"], "type": "string"}, {"type": "null"}]},
        "note": {"type": ["string", "null"], "maxLength": 3},
        "share": {"type": "number", "minimum": 0, "maximum": 1},
        "mark": {"type": "string", "enum": ["", "<|im_end|>", 'a\nb/"é']},
        "größe in cm": {
            "type": "object",
            "properties": {"a": {"type": "string", "minLength": 1, "maxLength": 2}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
    "required": ["unit", "side"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("name", ["qwen3-coder", "glm 4.7", "deepseek 3.2", "gemma 4", "python"])
def test_required_calls_obey_references_and_alternatives(name: str) -> None:
    made = chat_format(FORMATS[name])
    tool = {"type": "function", "function": {"name": "convert-1.x", "parameters": UNITS}}
    request = parse(tools=[tool], tool_choice="required", parallel_tool_calls=False)
    tools = made.tools(request)
    assert tools is not None
    for seed in range(3):
        text, ((called, arguments),) = read(tools, sampled(made, request, seed))
        assert not text.strip()
        assert called == "convert-1.x"
        jsonschema.validate(arguments, UNITS)


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("qwen3-coder", {"properties": {"a": {"type": "string", "pattern": "^x"}}}),
        ("qwen3-coder", {"properties": {}, "anyOf": [{}]}),
        ("gemma 4", {"properties": {"a": {"type": "array"}}}),
        ("python", {"properties": {}, "minProperties": 1}),
    ],
)
def test_a_schema_that_a_format_cannot_express_is_refused(name: str, schema: Any) -> None:
    made = chat_format(FORMATS[name])
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    request = parse(tools=[tool], tool_choice="required")
    with pytest.raises(RequestRejected, match="tools cannot be enforced"):
        sampled(made, request, 0)
    assert made.tools(parse(tools=[tool])) is not None


DEFINITIONS = {"Code": {"$ref": "#/$defs/Text"}, "Text": {"type": "string"}}


@pytest.mark.parametrize(
    ("written_as", "schema", "value"),
    [
        ("42", {"type": "string"}, "42"),
        ("42", {"type": "integer"}, 42),
        ("42", {"type": "number"}, 42),
        ("4.5", {"type": ["number", "null"]}, 4.5),
        ("True", {"type": "boolean"}, True),
        ("null", {"anyOf": [{"type": "string"}, {"type": "null"}]}, None),
        ("42", {"anyOf": [{"type": "string"}, {"type": "null"}]}, "42"),
        ("['a', None]", {"type": "array"}, ["a", None]),
        ("{'a': 1}", {"type": "string"}, "{'a': 1}"),
        ('{"a": 1}', {}, {"a": 1}),
        ("NaN", {}, "NaN"),
        ("so </parameter> what", {"type": "string"}, "so </parameter> what"),
        ("two\nlines\n", {"type": "string"}, "two\nlines\n"),
        ("seven", {"type": "integer"}, "seven"),
        ("1" * 5000, {"type": "integer"}, "1" * 5000),
        ("3", {"$ref": "#/$defs/Code"}, "3"),
    ],
)
def test_the_schema_types_what_is_written_without_quotation_marks(
    written_as: str, schema: Any, value: Any
) -> None:
    parameters = {"properties": {"a": schema}, "$defs": DEFINITIONS}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    tools = chat_format(FORMATS["qwen3-coder"]).tools(parse(tools=[tool]))
    assert tools is not None
    reply = "<tool_call>\n<function=f>\n<parameter=a>\n{}\n</parameter>\n</function>\n</tool_call>"
    assert read(tools, *reply.format(written_as)) == ("", [("f", {"a": value})])


@pytest.mark.parametrize(
    ("written_as", "arguments"),
    [
        ("from='a', in=\"b\\n\"", {"from": "a", "in": "b\n"}),
        (r"path='C:\dir\/x'", {"path": r"C:\dir/x"}),
        ("text='two\n  lines\r\n', 3d=\"\\\n\"", {"text": "two\n  lines\r\n", "3d": ""}),
        (
            "a=-1.5e3, b=(1, 2,), c={'d': [true, None]}",
            {"a": -1500.0, "b": [1, 2], "c": {"d": [True, None]}},
        ),
        ("text='''it's\nso'''", {"text": "it's\nso"}),
    ],
)  # fmt: skip
def test_python_calls_have_any_literals_and_names(written_as: str, arguments: Any) -> None:
    tools = tools_of(FORMATS["python"])
    assert read(tools, *f"[now({written_as})]") == ("", [("now", arguments)])


@pytest.mark.parametrize(
    "reply",
    ["[now(a=b)]", "[now(a=__import__('os'))]", "[now(1)]", "[now(a=1+1)]", "[now()] Well.", "[1]",
     "[now(a='b]", "[now(a=f'b')]", "[now(a=1e999)]", "[" * 5000, "[now(a=" + "[" * 5000],
)  # fmt: skip
def test_what_is_no_list_of_calls_with_literals_stays_text(reply: str) -> None:
    assert read(tools_of(FORMATS["python"]), *reply) == (reply, [])


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("python", "[search(query='7 < 8', limit='3', exact=\"True\", tags=\"['a', 'b']\")]"),
        (
            "function gemma",
            "<start_function_call>call:search{query:<escape>7 < 8<escape>,limit:<escape>3<escape>,"
            "exact:<escape>true<escape>,tags:<escape>['a', 'b']<escape>}<end_function_call>",
        ),
    ],
)
def test_quotation_marks_around_what_is_no_string_are_dropped(name: str, reply: str) -> None:
    assert read(tools_of(FORMATS[name]), *reply) == ("", [CALL])


def test_the_id_that_a_model_writes_is_the_id_of_its_call() -> None:
    for name, ids in (
        ("kimi", ["functions.search:0", "functions.now:1"]),
        ("mistral with ids", ["abcdefgh1", "abcdefgh2"]),
    ):
        finder = CallFinder(tools_of(FORMATS[name]))
        calls = [*finder.feed(FORMATS[name].reply).calls, *finder.close().calls]
        assert [call.id for call in calls] == ids


EARLIER: list[dict[str, Any]] = [
    *HI,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "abcdefgh1",
                "type": "function",
                "function": {"name": "search", "arguments": '{"query": "x"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "abcdefgh1", "content": "rain"},
]


@pytest.mark.parametrize(
    "template",
    ["{{ '(' + c.function.arguments + ')' }}", "({{ c.function.arguments }})",
     "({{ c.function.arguments | tojson }})"],
    ids=["text", "text or object", "object"],
)  # fmt: skip
def test_earlier_calls_have_the_shape_that_the_template_wants(template: str) -> None:
    made = tiny.chat_format(
        "{{ tools }}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        f"{template}{{% endfor %}}{{% endfor %}}"
    )
    assert '({"query": "x"})' in made.decode(made.encode(EARLIER, TOOLS))


ONE_CALL = {
    "rejects more": "{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('no') }}"
    "{% endif %}{{ m.tool_calls[0].function.arguments | tojson if m.tool_calls }}",
    "drops the others": "{{ m.tool_calls[0].function.arguments | tojson if m.tool_calls }}",
    "wants text": "{{ '' + m.tool_calls[0].function.arguments if m.tool_calls }}",
}
SEVERAL = "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}"


def earlier(*results: str | None) -> list[dict[str, Any]]:
    """Return a conversation with two calls, and results with these ids."""
    calls = [
        {
            "id": f"id{i}",
            "type": "function",
            "function": {"name": "f", "arguments": f'{{"a": {i}}}'},
        }
        for i in (1, 2)
    ]
    called = {"role": "assistant", "content": "Go", "tool_calls": calls}
    return [
        called,
        *({"role": "tool", "tool_call_id": of, "content": f"<{of}>"} for of in results),
        {"role": "user", "content": "So?"},
    ]


@pytest.mark.parametrize("written_as", ONE_CALL.values(), ids=ONE_CALL)
def test_calls_made_at_once_follow_each_other_where_a_template_writes_one(written_as: str) -> None:
    turn = "{% for m in messages %}[{{ m.role[0] }}{{ m.content }}{CALLS}]{% endfor %}"

    def shown(written_as: str, *results: str | None) -> str:
        made = tiny.chat_format(turn.replace("{CALLS}", written_as))
        return made.decode(made.encode(earlier(*results), TOOLS))

    expected = '[aGo{"a": 1}][t<id1>][a{"a": 2}][t<id2>][uSo?]'
    assert shown(written_as, "id1", "id2") == shown(written_as, "id2", "id1") == expected
    assert shown(written_as, None, None) == expected.replace("id1", "None").replace("id2", "None")
    alone = '[aGo{"a": 1}][a{"a": 2}][t<id2>][t<id3>][uSo?]'
    assert shown(written_as, "id2", "id3") == alone
    together = '[aGo{"a": 1}{"a": 2}][t<id2>][t<id1>][uSo?]'
    assert shown(SEVERAL, "id2", "id1") == together


def test_tools_stand_in_the_system_message_where_a_template_looks_for_them() -> None:
    made = tiny.chat_format(
        "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message %}"
        "{{ message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' }}{% else %}"
        "{{ message['content'] }}{% endif %}{% endfor %}"
    )
    tools = json.dumps([tool["function"] for tool in TOOLS])
    system = {"role": "system", "content": "Be brief."}
    assert made.decode(made.encode(HI, TOOLS)) == f"<|tool|>{tools}<|/tool|>Hi"
    assert made.decode(made.encode([system, *HI], TOOLS)) == f"Be brief.<|tool|>{tools}<|/tool|>Hi"
    assert made.decode(made.encode([system, *HI])) == "Be brief.Hi"
    assert made.tools(parse()) is not None


def test_a_template_that_insists_on_descriptions_gets_empty_ones() -> None:
    strict = tiny.chat_format(
        "{% for t in tools %}({{ t.function.name + ':' + t.function.description }}"
        "{% for n, p in t.function.parameters.properties.items() %} {{ n + p.description }}"
        "{% endfor %}){% endfor %}"
    )
    assert strict.decode(strict.encode(HI, TOOLS)) == "(search: query limit exact tags)(now:)"
    lenient = tiny.chat_format("{{ tools | tojson }}")
    assert json.loads(lenient.decode(lenient.encode(HI, TOOLS))) == TOOLS


@pytest.mark.parametrize(
    ("read_as", "shown"),
    [
        ("message.reasoning_content", "(Six.)"),
        ("message.thinking", "(Six.)"),
        ("message['reasoning']", "(Six.)"),
        ("message.content", "(None)"),
        ("'<|channel|>analysis' if message.thinking else message.content", "(<|channel|>analysis)"),
    ],
)
def test_earlier_reasoning_stands_where_the_template_reads_it(read_as: str, shown: str) -> None:
    made = tiny.chat_format(f"{{% for message in messages %}}({{{{ {read_as} }}}}){{% endfor %}}")
    message = {**EARLIER[1], "reasoning_content": "Six."}
    assert made.decode(made.encode([message])) == shown.replace("None", "")


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_a_call_with_text_and_reasoning_gets_by_a_template_that_takes_one(field: str) -> None:
    made = tiny.chat_format(
        "{% for m in messages %}{% if m.content and m.thinking %}{{ raise_exception('both') }}"
        "{% endif %}<|channel|>analysis{{ m.thinking or m.content }}{% endfor %}"
    )
    message = {**EARLIER[1], field: "Six.", "content": "I look."}
    assert made.decode(made.encode([message])) == "<|channel|>analysisSix.\n\nI look."


@pytest.mark.parametrize("field", ["reasoning_content", "thinking"])
def test_a_call_with_text_keeps_its_reasoning(field: str) -> None:
    made = tiny.chat_format("{% for m in messages %}{{ m.thinking }}|{{ m.content }}{% endfor %}")
    message = {**EARLIER[1], field: "Six.", "content": "I look."}
    assert made.decode(made.encode([message])) == "Six.|I look."


RUNNER = tiny.runner(2048)


@pytest.mark.parametrize("name", ["qwen3-coder", "deepseek 3.2", "kimi", "gemma 4", "llama 4"])
def test_the_engine_makes_required_calls_in_any_format(name: str) -> None:
    made = chat_format(FORMATS[name])
    fields = {"tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 400, "seed": 3}
    batch = Batch(RUNNER, made, Capacity(prefix_bytes=0))
    heard: list[Event] = []
    batch.add(Submission(parse(**fields, n=3, stop=["never"]), heard.append))
    while not batch.idle:
        batch.step()
    choices = [Choice() for _ in range(3)]
    for piece in heard[:-1]:
        assert isinstance(piece, Piece)
        choices[piece.choice].add(piece)
    ended = [choice for choice in choices if choice.finish_reason == "tool_calls"]
    assert ended
    for choice in ended:
        assert not choice.text.strip()
        (call,) = choice.tool_calls
        parameters = dict(named([call])[0][1])
        jsonschema.validate(parameters, {"search": SEARCH, "now": {"maxProperties": 0}}[call.name])
