"""Writes prompts with a model's chat template: its variables, and control tokens of its own only.

Text that spells a control token, such as `<|im_end|>`, is text where a request sends it: only the
template's own control tokens become tokens.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

from optillm_hooks.errors import RequestRejected
from optillm_hooks.local_provider.engine_request import PromptOptions

_SWITCHES = ("enable_thinking", "thinking")
"""Names of the variable with which templates switch thinking on and off."""

_NO_EFFORT = ("none", "minimal", "disable")
"""Values of `reasoning_effort` that switch thinking off."""

_THOUGHTS = ("content", "reasoning", "reasoning_content", "thinking")
"""Fields of an assistant's message that hold its thinking, with the markers around it."""

_THINKING = re.compile(r"\W{1,4}(?:seed:|start_|end_)?think(?:ing)?\W{1,4}", re.IGNORECASE)
"""A thinking marker, such as `<think>` and `[/THINK]`."""

_CONTROL = re.compile(r"<[|\uff5c].*[|\uff5c]>")
"""The usual spelling of control tokens. Some tokenizers do not declare theirs as special."""

_STAND_IN = "x"

_ROLES = ("system", "user", "assistant", "tool")
"""Roles that every template may get; others have to stand in the template."""

_MAX_FOUND = 10_000
"""Maximum number of control tokens in the text of a request. Each is tokenized by itself."""

_Tree = dict[str, "_Tree"]

Change = Callable[[str, bool], str]
"""Changes a string of a request; the flag is True where an assistant's thinking may be."""


def encode_prompt(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    options: PromptOptions,
    check: Callable[[str], None],
) -> list[int]:
    """Return the token ids of a conversation in the tokenizer's chat template.

    `check` gets the text of the prompt before that is tokenized, and may raise.

    Raises:
        RequestRejected: the template turns text of the request into a control token.
    """
    given: dict[str, Any] = {"messages": list(messages), "tools": list(tools) if tools else None}
    template = str(tokenizer.get_chat_template(tools=given["tools"]))
    for role in {str(message["role"]) for message in messages}.difference(_ROLES):
        # A template may write a role between the parts of a control token: <|role|>.
        if f"'{role}'" not in template and f'"{role}"' not in template:
            raise RequestRejected(
                f"the model's chat template has no role {role[:80]!r}", param="messages"
            )
    given["variables"] = _variables(template, options)
    controls = _controls(tokenizer, template)
    found, edges = _found(given, controls), _edges_of(tuple(controls))
    if found or _has_edges(given, edges):
        return _encoded_as_text(tokenizer, given, options, check, controls)
    return _encoded(tokenizer, given, options, check)


def _encoded(
    tokenizer: Any,
    given: Mapping[str, Any],
    options: PromptOptions,
    check: Callable[[str], None],
) -> list[int]:
    text = tokenizer.apply_chat_template(**_arguments(given, options), tokenize=False)
    check(text)
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _encoded_as_text(
    tokenizer: Any,
    given: Mapping[str, Any],
    options: PromptOptions,
    check: Callable[[str], None],
    controls: Mapping[str, int],
) -> list[int]:
    """Return the ids of a prompt, of whose text some spells control tokens, or parts of them.

    Templates may split, strip, join and escape text. So its control tokens are compared with those
    of the same prompt with other words in their place.
    """
    from transformers.utils.chat_template_utils import encode_marked_chat, mark_control_tokens

    everywhere = _pattern(tuple(controls))
    beside_thinking = _pattern(tuple(c for c in controls if not _THINKING.fullmatch(c)))

    def mark(text: str, may_think: bool) -> str:
        marked: str = mark_control_tokens(text, beside_thinking if may_think else everywhere)
        return marked

    edges = _edges_of(tuple(controls))

    def stand_in(text: str, may_think: bool) -> str:
        pattern = beside_thinking if may_think else everywhere
        return edges.replaced(pattern.sub(_STAND_IN, text))

    expected = _encoded(tokenizer, _changed(given, stand_in), options, check)
    marked = _arguments(_changed(given, mark), options)
    written = tokenizer.apply_chat_template(**marked, tokenize=False)
    ids: list[int] = encode_marked_chat(tokenizer, written)
    special = {token: text for text, token in controls.items()}
    written_ids, expected_ids = ([i for i in some if i in special] for some in (ids, expected))
    if written_ids != expected_ids:
        changed = Counter(written_ids) - Counter(expected_ids) or Counter(expected_ids)
        raise RequestRejected(
            f"the messages or tools contain {special[min(changed)]!r}, a control token of this "
            "model, or a part of it, which its chat template does not keep as text",
            param="messages",
        )
    return ids


class _Edges:
    """Finds parts of control tokens where a text begins and ends.

    A template may write two texts one after the other, or its own text beside one of them.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        cuts = [(text[:i], text[i:]) for text in texts for i in range(1, len(text))]
        self._beginnings = frozenset(beginning for beginning, _ in cuts)
        self._ends = frozenset(end for _, end in cuts)
        self._longest = max((len(text) for text in self._ends), default=0)

    def replaced(self, text: str) -> str:
        """Return `text` with another word for the end of a control token at its beginning, and for
        the beginning of one at its end.
        """
        sizes = range(min(self._longest, len(text)), 0, -1)
        head = next((size for size in sizes if text[:size] in self._ends), 0)
        tail = next((size for size in sizes if text[-size:] in self._beginnings), 0)
        middle = text[head : len(text) - tail]
        return (_STAND_IN if head else "") + middle + (_STAND_IN if tail else "")


@lru_cache(maxsize=64)
def _edges_of(texts: tuple[str, ...]) -> _Edges:
    return _Edges(texts)


def _has_edges(given: Mapping[str, Any], edges: _Edges) -> bool:
    """Return True if a string of the request begins or ends with a part of a control token."""
    found = False

    def look(text: str, _may_think: bool) -> str:
        nonlocal found
        found = found or edges.replaced(text) != text
        return text

    _changed(given, look)
    return found


def _arguments(given: Mapping[str, Any], options: PromptOptions) -> dict[str, Any]:
    """Return the arguments of the tokenizer's `apply_chat_template`."""
    messages = given["messages"]
    return {
        **given["variables"],
        "conversation": messages,
        "tools": given["tools"],
        "add_generation_prompt": options.begin_reply and not options.continue_final,
        "continue_final_message": options.continue_final and _open_field(messages[-1]),
    }


def _open_field(message: Mapping[str, Any]) -> str:
    """Return the field of a message that its continuation goes on with."""
    thinks_only = message.get("reasoning_content") and not message.get("content")
    return "reasoning_content" if thinks_only else "content"


def _variables(template: str, options: PromptOptions) -> dict[str, Any]:
    """Return the template's variables, with the request's reasoning in those that it reads."""
    effort, thinks = options.reasoning_effort, options.thinking
    if thinks is None and effort is not None:
        thinks = effort not in _NO_EFFORT
    wanted = {"reasoning_effort": effort, **dict.fromkeys(_SWITCHES, thinks)}
    wanted["thinking_budget"] = options.thinking_budget
    sent = {name: value for name, value in wanted.items() if value is not None}
    read = _read(template) if sent else frozenset[str]()
    return {k: v for k, v in sent.items() if k in read} | dict(options.variables)


@lru_cache(maxsize=64)
def _read(template: str) -> frozenset[str]:
    """Return the names of the variables that a template reads."""
    from jinja2 import Environment, meta

    # Assistant masks of transformers, whose tags Jinja does not know.
    plain = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", template)
    syntax = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)  # noqa: S701
    return frozenset(meta.find_undeclared_variables(syntax))


def _controls(tokenizer: Any, template: str) -> dict[str, int]:
    """Return the ids of the control tokens.

    These are the special tokens, and added ones that the template has or that are spelled like
    `<|this|>`. Added tokens of whitespace are ordinary text.
    """
    return {
        added.content: token
        for token, added in tokenizer.added_tokens_decoder.items()
        if added.special
        or _CONTROL.fullmatch(added.content)
        or (added.content in template and not added.content.isspace())
    }


@lru_cache(maxsize=64)
def _pattern(texts: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern of any of `texts`, of several the longest.

    It is written as a tree of their beginnings: a model may have a thousand control tokens, and a
    plain list of them would be tried at every "<" of a text.
    """
    tree: _Tree = {}
    for text in filter(None, texts):
        node = tree
        for char in text:
            node = node.setdefault(char, {})
        node[""] = {}
    return re.compile(_written(tree) or "(?!)")


def _written(node: _Tree) -> str:
    branches = [re.escape(char) + _written(child) for char, child in node.items() if char]
    if not branches:
        return ""
    written = branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
    return f"(?:{written})?" if "" in node else written


def _found(given: Mapping[str, Any], controls: Mapping[str, int]) -> str | None:
    """Return a control token that a string of the request contains, or None.

    Raises:
        RequestRejected: there are too many.
    """
    pattern, found = _pattern(tuple(controls)), list[str]()

    def look(text: str, may_think: bool) -> str:
        for token in map(itemgetter(0), pattern.finditer(text)):
            if not (may_think and _THINKING.fullmatch(token)):
                found.append(token)
            if len(found) > _MAX_FOUND:
                raise RequestRejected(
                    f"the messages and tools contain more than {_MAX_FOUND} control tokens of this "
                    "model",
                    param="messages",
                )
        return text

    _changed(given, look)
    return found[0] if found else None


def _changed(given: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """Return messages, tools and variables with every string changed, names of fields too."""
    messages = [
        {
            key: _with_strings(value, change, m["role"] == "assistant" and key in _THOUGHTS)
            for key, value in m.items()
        }
        for m in given["messages"]
    ]
    others = {k: _with_strings(given[k], change) for k in ("tools", "variables")}
    return {"messages": messages, **others}


def _with_strings(value: Any, change: Change, may_think: bool = False) -> Any:
    if isinstance(value, str):
        return change(value, may_think)
    if isinstance(value, Mapping):
        return {
            change(key, False) if isinstance(key, str) else key: _with_strings(
                item, change, may_think
            )
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_with_strings(item, change, may_think) for item in value]
    return value
