"""Tool-call formats: what shows in the chat templates of each, and a reply with two calls."""

from collections.abc import Mapping
from typing import Any, NamedTuple

SEARCH = {
    "type": "object",
    "properties": {
        "query": {"type": "string", "maxLength": 12},
        "limit": {"type": "integer", "minimum": 1, "maximum": 9},
        "exact": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}},
    },
    "required": ["query", "limit"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "search", "parameters": SEARCH}},
    {"type": "function", "function": {"name": "now"}},
]
CALL = ("search", {"query": "7 < 8", "limit": 3, "exact": True, "tags": ["a", "b"]})
CALLS = [CALL, ("now", {})]
JSON = '{"query": "7 < 8", "limit": 3, "exact": true, "tags": ["a", "b"]}'
NAMED = f'{{"name": "search", "arguments": {JSON}}}'
NOW = '{"name": "now", "arguments": {}}'
CODE = 'search(query="7 < 8", limit=3, exact=True, tags=["a", \'b\'])'


class Format(NamedTuple):
    """A tool-call format, as a chat template and a model write it."""

    template: str
    """The part of a template by which the format is known."""

    reply: str
    calls: list[Any] = CALLS
    special: tuple[str, ...] = ()
    """Markers that are special tokens."""

    text: str = "Well."
    """The text before the calls."""


def bars(text: str) -> str:
    """Return `text` with DeepSeek's letters for bars and blanks."""
    return text.replace("|", "\uff5c").replace("_", "\u2581")


def tags(prefix: str, name: str = "function", value: str = "{}") -> str:
    """Return the calls as tags around each argument."""
    begin, end = (f"<{prefix}", f"</{prefix}")
    arguments = {"query": "7 < 8", "limit": "3", "exact": "True", "tags": '["a", "b"]'}
    written = "\n".join(
        f"{begin}parameter={key}>{value.format(text)}{end}parameter>"
        for key, text in arguments.items()
    )
    return f"{begin}{name}=search>\n{written}\n{end}{name}>"


def attributes(prefix: str, *, typed: bool) -> str:
    """Return the calls as tags with the names as attributes."""
    kinds = {"query": ' string="true"', "limit": ' string="false"'} if typed else {}
    arguments = {"query": "7 < 8", "limit": "3", "exact": "true", "tags": '["a", "b"]'}
    written = "\n".join(
        f'<{prefix}parameter name="{key}"{kinds.get(key, kinds.get("limit", ""))}>{text}'
        f"</{prefix}parameter>"
        for key, text in arguments.items()
    )
    search = f'<{prefix}invoke name="search">\n{written}\n</{prefix}invoke>'
    return f'{search}\n<{prefix}invoke name="now">\n</{prefix}invoke>'


def glm(gap: str) -> str:
    arguments = {"query": "7 < 8", "limit": "3", "exact": "true", "tags": '["a", "b"]'}
    written = gap.join(
        f"<arg_key>{key}</arg_key>{gap}<arg_value>{text}</arg_value>"
        for key, text in arguments.items()
    )
    return f"<tool_call>search{gap}{written}{gap}</tool_call>\n<tool_call>now{gap}</tool_call>"


QWEN = tags("", value="\n{}\n")
GEMMA = "call:search{{exact:true,limit:3,query:{0}7 < 8{0},tags:[{0}a{0},{0}b{0}]}}"
KIMI = (
    "<|tool_calls_section_begin|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<|tool_calls_section_end|>",
)
DEEPSEEK = tuple(
    bars(f"<|tool_{part}|>")
    for part in ("calls_begin", "call_begin", "sep", "call_end", "calls_end")
)
BEGIN, CALL_BEGIN, SEP, CALL_END, END = DEEPSEEK
DSML = bars("|DSML|")
FENCED = "function{0}search\n```json\n{1}\n```{2}\n{3}function{0}now\n```json\n{{}}\n```{2}"
COMMAND = (
    f'{{"tool_call_id": "0", "tool_name": "search", "parameters": {JSON}}}',
    '{"tool_call_id": "1", "tool_name": "now", "parameters": {}}',
)

FORMATS: Mapping[str, Format] = {
    "hermes": Format(
        '<tool_call>{"name": ..., "arguments": ...}</tool_call>',
        f"Well.\n<tool_call>\n{NAMED}\n</tool_call>\n<tool_call>\n{NOW}\n</tool_call>",
    ),
    "qwen3-coder": Format(
        "<tool_call>\n<function=example><parameter=arguments>",
        f"Well.\n\n<tool_call>\n{QWEN}\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n"
        "</tool_call>",
    ),
    "qwen3-coder without the first marker": Format(
        "<tool_call>\n<function=example><parameter=arguments>",
        f"Well.\n\n{QWEN}\n</tool_call>",
        [CALL],
    ),
    "qwen3-coder without either marker": Format(
        "<tool_call>\n<function=example><parameter=arguments>", f"Well.\n\n{QWEN}", [CALL]
    ),
    "seed": Format(
        "{%- set begin = '<seed:tool_call>' -%}",
        f"Well.\n<seed:tool_call>\n{tags('')}\n</seed:tool_call>",
        [CALL],
    ),
    "glm 4.5": Format(
        "<tool_call>{name}\n<arg_key>{key}</arg_key>\n<arg_value>", "Well.\n" + glm("\n")
    ),
    "glm 4.7": Format("<tool_call>{name}<arg_key>{key}</arg_key><arg_value>", f"Well.{glm('')}"),
    "minimax": Format(
        "<minimax:tool_call>",
        f"Well.\n<minimax:tool_call>\n{attributes('', typed=False)}\n</minimax:tool_call>",
        special=("<minimax:tool_call>", "</minimax:tool_call>"),
    ),
    "deepseek 3.2": Format(
        f"<{DSML}function_calls>",
        f"Well.\n\n<{DSML}function_calls>\n{attributes(DSML, typed=True)}\n</{DSML}function_calls>",
        special=(DSML,),
    ),
    "deepseek 4": Format(
        f"{DSML} tool_calls",
        f"Well.\n\n<{DSML}tool_calls>\n{attributes(DSML, typed=True)}\n</{DSML}tool_calls>",
    ),
    "mistral": Format(
        "[TOOL_CALLS]", f"Well.[TOOL_CALLS] [{NAMED}, {NOW}]", special=("[TOOL_CALLS]",)
    ),
    "mistral by name": Format(
        "[TOOL_CALLS]name[ARGS]{}",
        f"Well.[TOOL_CALLS]search[ARGS]{JSON}[TOOL_CALLS]now[ARGS]{{}}",
        special=("[TOOL_CALLS]", "[ARGS]"),
    ),
    "mistral with ids": Format(
        "[TOOL_CALLS]name[CALL_ID]id[ARGS]{}",
        f"Well.[TOOL_CALLS]search[CALL_ID]abcdefgh1[ARGS]{JSON}"
        "[TOOL_CALLS]now[CALL_ID]abcdefgh2[ARGS]{}",
        special=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    ),
    "kimi": Format(
        KIMI[0],
        f"Well.{KIMI[0]}{KIMI[1]}functions.search:0{KIMI[2]}{JSON}{KIMI[3]}"
        f"{KIMI[1]}functions.now:1{KIMI[2]}{{}}{KIMI[3]}{KIMI[4]}",
        special=KIMI,
    ),
    "deepseek 3": Format(
        f"{BEGIN}...```json",
        f"Well.{BEGIN}{CALL_BEGIN}{FENCED.format(SEP, JSON, CALL_END, CALL_BEGIN)}{END}",
    ),
    "deepseek 3.1": Format(
        BEGIN,
        f"Well.{BEGIN}{CALL_BEGIN}search{SEP}{JSON}{CALL_END}{CALL_BEGIN}now{SEP}{{}}{CALL_END}{END}",
        special=DEEPSEEK,
    ),
    "functionary": Format(
        "<function=name>{}</function>",
        f"Well.<function=search>{JSON}</function>\n<function=now>{{}}</function>",
    ),
    "gemma 4": Format(
        "{{ '<|tool_call>call:' + name }}",
        "Well.<|tool_call>"
        + GEMMA.format('<|"|>')
        + "<tool_call|><|tool_call>call:now{}<tool_call|>",
        special=("<|tool_call>", "<tool_call|>", '<|"|>'),
    ),
    "function gemma": Format(
        "<start_function_call>call:",
        f"Well.<start_function_call>{GEMMA.format('<escape>')}<end_function_call>"
        "<start_function_call>call:now{}<end_function_call>",
        special=("<start_function_call>", "<end_function_call>", "<escape>"),
    ),
    "phi 4 mini": Format(
        "<|tool|>{{ tool }}<|/tool|>",
        f"Well.<|tool_call|>[{NAMED}, {NOW}]<|/tool_call|>",
        special=("<|tool_call|>", "<|/tool_call|>"),
    ),
    "granite 3": Format(
        "<|tool_call|> and a list",
        f"Well.<|tool_call|>[{NAMED}, {NOW}]",
        special=("<|tool_call|>",),
    ),
    "granite code": Format(
        "<function_call> {", f"Well.<function_call> {NAMED}<function_call> {NOW}"
    ),
    "functools": Format("functools[...]", f"Well. functools[{NAMED}, {NOW}]"),
    "nemotron": Format(
        "<TOOLCALL>[...]</TOOLCALL>", f"Well.\n<TOOLCALL>[{NAMED}, {NOW}]</TOOLCALL>"
    ),
    "hunyuan": Format("<tool_calls>[...]", f"Well.\n<tool_calls>[{NAMED}, {NOW}]</tool_calls>"),
    "minimax 1": Format("<tool_calls>", f"Well.\n<tool_calls>\n{NAMED}\n{NOW}\n</tool_calls>"),
    "internlm": Format(
        "<|action_start|><|plugin|>",
        f"Well.<|action_start|><|plugin|>\n{NAMED}<|action_end|><|action_start|><|plugin|>\n{NOW}"
        "<|action_end|>",
        special=("<|action_start|>", "<|plugin|>", "<|action_end|>"),
    ),
    "gigachat": Format("<|function_call|>", f"Well.<|function_call|>{NAMED}", [CALL]),
    "command": Format(
        "<|START_ACTION|>",
        f"Well.<|START_ACTION|>[\n    {COMMAND[0]},\n    {COMMAND[1]}\n]<|END_ACTION|>",
        special=("<|START_ACTION|>", "<|END_ACTION|>"),
    ),
    "apertus": Format(
        "<|tools_prefix|>",
        f'Well.<|tools_prefix|>[{{"search": {JSON}}}, {{"now": {{}}}}]<|tools_suffix|>',
        special=("<|tools_prefix|>", "<|tools_suffix|>"),
    ),
    "llama 3": Format(
        'Environment: ipython {"name": ..., "parameters": ...}',
        f"Well.<|python_tag|>{NAMED}; {NOW}".replace("arguments", "parameters"),
        special=("<|python_tag|>",),
    ),
    "llama 4": Format(
        "<|header_start|> [func(a=1)]",
        f"Well.<|python_start|>[{CODE}, now()]<|python_end|>",
        special=("<|python_start|>", "<|python_end|>"),
    ),
    "llama 4 without the last marker": Format(
        "<|header_start|> [func(a=1)]", f"Well.<|python_start|>[{CODE}, now()]"
    ),
    "llama 4 without markers": Format("<|header_start|> [func(a=1)]", f"[{CODE}, now()]", text=""),
    "python": Format("[func_name(params_name=params_value)]", f"\n[{CODE}, now()]", text=""),
    "xlam": Format('[{"name": "tool_name", "arguments": {}}]', f"[{NAMED}, {NOW}]", text=""),
    "lfm": Format(
        "<|tool_list_start|>",
        f"<|tool_call_start|>[{CODE}, now()]<|tool_call_end|>Well.",
        special=("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    "olmo": Format(
        "<function_calls>", f"Well.\n<function_calls>\n{CODE}\nnow()\n</function_calls>"
    ),
    "tool code": Format("```tool_code", f"Well.\n```tool_code\n{CODE}\nnow()\n```"),
}
