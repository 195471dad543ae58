"""Reasoning in the formats of many model families: markers, channels, and the tokens counted."""

import itertools
from typing import Any

import pytest

from optillm_hooks.errors import RequestRejected
from optillm_hooks.local_provider.batch import Batch, Capacity
from optillm_hooks.local_provider.chat_format import ChatFormat
from optillm_hooks.local_provider.choice_output import ChoiceOutput
from optillm_hooks.local_provider.engine_request import Choice, Event, Finished, Piece, Submission
from optillm_hooks.local_provider.request import parse_request
from tests.local_provider import tiny
from tests.local_provider.call_formats import CALL, JSON, TOOLS
from tests.local_provider.test_call_formats import HI, named

HARMONY = (
    "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>",
)  # fmt: skip
TEMPLATES: dict[str, tuple[str, tuple[str, ...]]] = {
    "think": ("<think>", ()),
    "magistral": ("[THINK]...[/THINK]", ("[THINK]", "[/THINK]")),
    "seed": ("<seed:think>", ()),
    "command": (
        "<|START_THINKING|>",
        ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ),
    "apertus": ("<|inner_prefix|>", ("<|inner_prefix|>", "<|inner_suffix|>")),
    "gemma 4": ("<|channel>thought", ("<|channel>", "<channel|>")),
    "granite": ("<think></think><response></response>", ()),
    "hunyuan": ("<think></think><answer></answer>", ()),
    "harmony": ("<|channel|>analysis<|message|>", HARMONY),
}
REPLIES: list[tuple[str, str, str, str]] = [
    ("think", "<think>\nSix.\n</think>\n\n42", "Six.\n", "42"),
    ("magistral", "[THINK]Six.[/THINK]42", "Six.", "42"),
    ("seed", "<seed:think>Six.</seed:think>42", "Six.", "42"),
    ("command", "<|START_THINKING|>Six.<|END_THINKING|><|START_RESPONSE|>42<|END_RESPONSE|>",
     "Six.", "42"),
    ("command", "<|START_RESPONSE|>42<|END_RESPONSE|>", "", "42"),
    ("command", "<|START_TEXT|>42<|END_TEXT|>", "", "42"),
    ("apertus", "<|inner_prefix|>Six.<|inner_suffix|>42", "Six.", "42"),
    ("gemma 4", "<|channel>thought\nSix.\n<channel|>42", "Six.\n", "42"),
    ("granite", "<think>Six.</think><response>4 </res 2</response>", "Six.", "4 </res 2"),
    ("granite", "<think>Six.</think>\n<resp 42", "Six.", "<resp 42"),
    ("granite", "<response>42</response>", "", "<response>42</response>"),
    ("hunyuan", "<think>\nSix.\n</think>\n<answer>\n42</answer>.", "Six.\n", "42."),
    ("harmony",
     "<|channel|>analysis<|message|>Six.<|end|><|start|>assistant<|channel|>final<|message|>42",
     "Six.", "42"),
    ("harmony",
     "<|channel|>analysis<|message|>Six.<|end|><|start|>assistant<|channel|>analysis<|message|>"
     "Seven.<|end|><|start|>assistant<|channel|>commentary<|message|>I count.<|end|>"
     "<|start|>assistant<|channel|>final<|message|>42<|end|>",
     "Six.\n\nSeven.", "I count.\n\n42"),
    ("harmony", "<|start|>assistant<|channel|>final<|message|>42", "", "42"),
    (
        "harmony",
        "<|channel|>analysis<|message|>Six.<|start|>assistant<|channel|>final<|message|>42",
        "Six.",
        "42",
    ),
    ("harmony", "42 <|", "", "42 <|"),
    ("harmony", "<|channel|>final", "", ""),
]  # fmt: skip


def chat_format(family: str, *, special: bool = True) -> ChatFormat:
    template, markers = TEMPLATES[family]
    markers = markers if special else ()
    turns = "{# " + template + "[TOOL_CALLS] #}" + tiny.CHATML
    if family == "harmony":
        turns = turns.replace("<|im_start|>assistant\n", "<|start|>assistant")
    return tiny.chat_format(turns, [*tiny.WORDS, *markers], markers)


def read(made: ChatFormat, *pieces: str, **fields: Any) -> tuple[str, str, list[Any]]:
    """Return the reasoning, the text and the calls of a reply that comes in `pieces`."""
    reader = made.reader(**fields)
    shown = [*map(reader.feed, pieces), reader.close()]
    calls = [call for part in shown for call in part.calls]
    assert reader.called == bool(calls)
    return (
        "".join(part.reasoning for part in shown),
        "".join(part.text for part in shown),
        named(calls),
    )


@pytest.mark.parametrize(("family", "reply", "reasoning", "text"), REPLIES)
def test_reasoning_is_parted_from_the_text_wherever_the_reply_is_cut(
    family: str, reply: str, reasoning: str, text: str
) -> None:
    made = chat_format(family)
    assert read(made, *reply) == (reasoning, text, [])
    for cut in range(len(reply)):
        assert read(made, reply[:cut], reply[cut:]) == (reasoning, text, [])


def written(made: ChatFormat, reply: str, **fields: Any) -> tuple[Choice, ChoiceOutput]:
    """Return the output of a reply that a model writes token by token."""
    output, choice = ChoiceOutput(0, made, [], **fields), Choice()
    for token in [*made.encode_text(reply), tiny.END]:
        if piece := output.add(token, None, last=False):
            choice.add(piece)
        if output.finish_reason:
            break
    return choice, output


@pytest.mark.parametrize("special", [True, False], ids=["special tokens", "plain tokens"])
@pytest.mark.parametrize(("family", "reply", "reasoning", "text"), REPLIES)
def test_the_markers_may_be_special_tokens(
    family: str, reply: str, reasoning: str, text: str, special: bool
) -> None:
    choice, output = written(chat_format(family, special=special), reply)
    assert (choice.reasoning, choice.text) == (reasoning, text)
    assert (output.reasoning_tokens > 0) == bool(reasoning)


ANALYSIS = "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant"
HARMONY_CALLS = [
    f"<|channel|>commentary to=functions.search <|constrain|>json<|message|>{JSON}",
    f" to=functions.search<|channel|>commentary json<|message|>{JSON}",
    f"<|channel|>commentary to=search<|message|>{JSON}<|end|>",
    f"<|channel|>analysis to=functions.search code<|message|>{JSON}",
]


@pytest.mark.parametrize("call", HARMONY_CALLS)
@pytest.mark.parametrize("before", ["", ANALYSIS], ids=["alone", "after analysis"])
def test_a_call_in_harmony_is_read_from_either_place(call: str, before: str) -> None:
    made = chat_format("harmony")
    tools = made.tools(parse_request(HI, {"tools": TOOLS}))
    expected = ("Look." if before else "", "", [CALL])
    for cut in range(len(before + call)):
        reply = before + call
        assert read(made, reply[:cut], reply[cut:], tools=tools) == expected
    choice, output = written(made, f"{before}{call}<|call|>", tools=tools)
    assert named(choice.tool_calls) == [CALL]
    assert choice.finish_reason == "tool_calls"
    assert output.ids[-1] in made.end_ids


@pytest.mark.parametrize(
    "call",
    [
        "<|channel|>commentary to=functions.erase<|message|>{}",
        "<|channel|>commentary to=functions.search<|message|>{oops",
        "<|channel|>commentary to=browser.open<|message|>[]",
    ],
)
def test_a_malformed_call_in_harmony_stays_text(call: str) -> None:
    made = chat_format("harmony")
    tools = made.tools(parse_request(HI, {"tools": TOOLS}))
    assert read(made, *ANALYSIS, *call, tools=tools) == ("Look.", call, [])
    assert read(made, *call)[2] == []


def test_the_end_of_a_harmony_message_does_not_end_the_reply() -> None:
    tokenizer = tiny.tokenizer(TEMPLATES["harmony"][0], HARMONY, HARMONY)
    token = {text: tokenizer.convert_tokens_to_ids(text) for text in HARMONY}
    made = ChatFormat(tokenizer, {tiny.END, token["<|end|>"]})
    assert token["<|end|>"] not in made.end_ids
    assert {token["<|return|>"], token["<|call|>"], tiny.END} <= made.end_ids


PARTS = ["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "analysis", "to=functions.now", "{}"]


def test_harmony_reads_any_sequence_of_markers_the_same_in_any_pieces() -> None:
    made = chat_format("harmony")
    tools = made.tools(parse_request(HI, {"tools": TOOLS}))
    for parts in itertools.product(PARTS, repeat=4):
        reply = "".join(parts)
        whole = read(made, reply, tools=tools)
        assert read(made, *parts, tools=tools) == read(made, *reply, tools=tools) == whole


FAMILIES = [family for family in TEMPLATES if family not in ("think", "granite", "hunyuan")]


def replies(made: ChatFormat, **fields: Any) -> tuple[Choice, Finished]:
    batch = Batch(RUNNER, made, Capacity(prefix_bytes=0))
    heard: list[Event] = []
    batch.add(Submission(parse_request(HI, {"seed": 1, **fields}), heard.append))
    while not batch.idle:
        batch.step()
    *pieces, finished = heard
    if isinstance(finished, Exception):
        raise finished
    assert isinstance(finished, Finished)
    choice = Choice()
    for piece in pieces:
        assert isinstance(piece, Piece)
        choice.add(piece)
    return choice, finished


RUNNER = tiny.runner()
A = tiny.chat_format().encode_text("a")[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_thinkdeeper_inserts_the_markers_of_the_model(family: str) -> None:
    made = chat_format(family, special=False)
    settings = {"thinkdeeper": {"max_thinking_tokens": 3, "min_thinking_tokens": 0}}
    choice, finished = replies(
        made, optillm_decoding=settings, max_tokens=200, logit_bias={str(A): 100}
    )
    assert choice.reasoning.strip() == "a"
    assert finished.reasoning_tokens
    if family == "harmony":  # the tiny model writes no header for its answer
        assert choice.text == ""
    else:
        assert set(choice.text) == {"a"}


def test_harmony_has_no_other_markers() -> None:
    settings = {"thinkdeeper": {"start_think_token": "<t>", "end_think_token": "</t>"}}
    with pytest.raises(RequestRejected, match="markers of its own"):
        replies(chat_format("harmony"), optillm_decoding=settings, max_tokens=40)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_schema_binds_the_answer_and_not_the_reasoning(family: str) -> None:
    made = chat_format(family)
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    form = {
        "type": "json_schema",
        "json_schema": {"schema": {**schema, "additionalProperties": False}},
    }
    request = parse_request(HI, {"response_format": form})
    grammar = made.reply_grammar(request, None, made.reasoning(), opened=False, thinks=False)
    assert grammar is not None
    constraint = grammar.constraint(5.0)
    assert constraint is not None
    found = made.reasoning()
    reply = f'{found.opening}a{found.closing}{found.next}{found.answer}{{"n": 1}}'
    for token in made.encode_text(reply):
        constraint.accept(token)
    assert constraint.matcher.is_accepting()
    assert read(made, reply) == ("a", '{"n": 1}', [])
