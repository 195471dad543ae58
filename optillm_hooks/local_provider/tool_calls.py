"""Tool-call formats and parsers for JSON calls: Hermes, Mistral and Llama.

Transformers has a reply parser too (`response_template`), but it raises an error for a reply with a
malformed call; here, a malformed call is kept as text.
"""

import json
import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from optillm_hooks.answers.section_filter import overlap
from optillm_hooks.local_provider.grammar import json_rule
from optillm_hooks.types import ToolCall

_MAX_CHECKS = 8
"""How many closing markers in strings of a call are looked at, each by parsing the call so far."""

_LINE = '"\\n"'
_ID_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class CallForm:
    """A tool-call format: JSON objects with the name and the arguments of a function."""

    opening: str
    closing: str = ""
    """Empty: the call is the rest of the reply."""

    arguments: str = "arguments"
    """The key of the arguments in the JSON object."""

    listed: bool = False
    """Whether all calls are in one JSON array."""

    bare: bool = False
    """Whether a reply that is only such an object is a call, even without the opening marker. Only
    one call is possible then."""


HERMES = CallForm("<tool_call>", "</tool_call>")
MISTRAL = CallForm("[TOOL_CALLS]", listed=True)
LLAMA = CallForm("<|python_tag|>", arguments="parameters", bare=True)


def form_of(template: str) -> CallForm | None:
    """Return the tool-call format of a model with this chat template, or None if unknown."""
    if "<tool_call>" in template and "arguments" in template:
        # Qwen3-Coder and GLM write other formats between the same tags.
        return None if "<function=" in template or "<arg_key>" in template else HERMES
    if "[TOOL_CALLS]" in template and "[ARGS]" not in template:
        return MISTRAL
    return LLAMA if "ipython" in template and '"parameters"' in template else None


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of one request, and the model's tool-call format."""

    form: CallForm
    schemas: Mapping[str, Mapping[str, Any]]
    """JSON schema of the arguments by function name."""

    parallel: bool = True

    def rules(self, names: Sequence[str], symbol: Callable[[str], str]) -> str:
        """Return the grammar rule `calls`: one or more calls of the functions `names`.

        `symbol` returns a marker as a grammar symbol.
        """
        form = self.form
        calls = [f"call_{i}" for i, _ in enumerate(names)]
        lines = [
            f"call_{i}: {_quoted(self._head(name))} {json_rule(self.schemas[name])} {_quoted('}')}"
            for i, name in enumerate(names)
        ]
        several = self.parallel
        if form.bare:
            start = "call"
        elif form.listed:
            more = f"({_quoted(', ')} call)*" if several else ""
            start = f"{symbol(form.opening)} {_quoted(' [')} call {more} {_quoted(']')}"
        else:
            start = f"tagged ({_LINE} tagged)*" if several else "tagged"
            opening, closing = symbol(form.opening), symbol(form.closing)
            lines.append(f"tagged: {opening} {_LINE} call {_LINE} {closing}")
        return "\n".join([f"calls: {start}", f"call: {' | '.join(calls)}", *lines])

    def read(self, written: str) -> tuple[ToolCall, ...]:
        """Return the calls in `written`; none unless it consists of calls only."""
        try:
            value = json.loads(written)
            entries = value if isinstance(value, list) else [value]
            calls = tuple(self._call(entry) for entry in entries)
        except (KeyError, TypeError, ValueError, RecursionError):
            return ()
        return calls if self.parallel else calls[:1]

    def _call(self, entry: Any) -> ToolCall:
        """Return `entry` as a call; raise KeyError, TypeError or ValueError if it is not one."""
        name, arguments = entry["name"], entry[self.form.arguments]
        if not isinstance(arguments, dict) or name not in self.schemas:
            raise ValueError("not a call of one of these tools")
        # Nine letters or digits: the only ids that Mistral's templates accept.
        call_id = "".join(secrets.choice(_ID_LETTERS) for _ in range(9))
        return ToolCall(call_id, name, json.dumps(arguments, allow_nan=False))

    def _head(self, name: str) -> str:
        return f'{{"name": {json.dumps(name)}, "{self.form.arguments}": '


class Found(NamedTuple):
    """A piece of a reply: its text, and the calls that follow it."""

    text: str
    calls: tuple[ToolCall, ...] = ()


class CallFinder:
    """Splits a streamed reply into text and tool calls.

    Text that may be the beginning of a call is held back until that is known. A call names a tool
    of the request and has a JSON object as its arguments; anything else is text. Whitespace around
    calls is dropped, and without parallel calls, so is everything after the first call.
    """

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._state: Literal["text", "call", "rest"] = "text"
        """Whether what comes is text, a call up to its closing marker, or a call to the end."""

        self._held: list[str] = []
        """What came and is not certain yet: whitespace, then what may be a call."""

        self._end = ""
        """The end of it that may be the beginning of a marker."""

        self._body = 0
        """Length of the held text before the body of the call."""

        self._checks = 0
        """How many closing markers were in a string of the call."""

        self._begun = False
        """Whether there was text other than whitespace."""

        self.calls = 0

    @property
    def done(self) -> bool:
        """True if the only allowed call is complete."""
        return self.calls > 0 and not self._tools.parallel

    def feed(self, text: str) -> Found:
        """Return the text and calls that are certain by now."""
        shown, calls = list[str](), tuple[ToolCall, ...]()
        while text and not self.done:
            if self._state == "rest":
                self._held.append(text)
                break
            found, text = (self._in_call if self._state == "call" else self._in_text)(text)
            shown.append(found.text)
            calls += found.calls
        return Found("".join(shown), calls)

    def close(self) -> Found:
        """Return what was held back; no more follows."""
        held = "".join(self._held) + (self._end if self._state == "text" else "")
        if self.calls and (self.done or not held.strip()):
            return Found("")
        if self._state != "rest":
            return Found(held)
        before, opening, body = held.partition(self._tools.form.opening)
        return self._read(before, body, held) if opening else self._read("", held, held)

    def _in_text(self, piece: str) -> tuple[Found, str]:
        """Return the certain text of what has come up to `piece`, and what is still to be read."""
        form = self._tools.form
        text = self._end + piece
        if form.bare and not self._begun and text.lstrip().startswith("{"):
            self._state = "rest"
            return Found(""), text
        at = text.find(form.opening)
        certain = text[: at if at >= 0 else len(text) - overlap(text, form.opening)]
        self._end = "" if at >= 0 else text[len(certain) :]
        shown = certain.rstrip()
        if shown:
            self._begun = True
            shown, self._held = "".join([*self._held, shown]), []
        self._held.append(certain[len(certain.rstrip()) :])
        if at < 0:
            return Found(shown), ""
        self._state = "call" if form.closing else "rest"
        self._held.append(form.opening)
        self._body = sum(map(len, self._held))
        self._checks = 0
        return Found(shown), text[at + len(form.opening) :]

    def _in_call(self, piece: str) -> tuple[Found, str]:
        """Return the calls that end in `piece`, or else their text, and what follows them.

        A closing marker in a string of the call does not end it, unless there are many of these.
        """
        closing = self._tools.form.closing
        text = self._end + piece
        self._held.append(piece)
        end = text.find(closing)
        while end >= 0:
            held = "".join(self._held)
            self._held = [held]
            at = len(held) - len(text) + end
            body = held[self._body : at]
            if self._checks == _MAX_CHECKS or not _cut_in_a_string(body):
                self._state, self._end, self._held = "text", "", []
                written = held[: at + len(closing)]
                return self._read("", body, written), held[len(written) :]
            self._checks += 1
            end = text.find(closing, end + 1)
        self._end = text[len(text) - overlap(text, closing) :]
        return Found(""), ""

    def _read(self, before: str, body: str, written: str) -> Found:
        """Return `before` and the calls in `body`; if there are none, `written` as text."""
        calls = self._tools.read(body)
        self._begun = True
        self.calls += len(calls)
        return Found(before.rstrip(), calls) if calls else Found(written)


def _cut_in_a_string(text: str) -> bool:
    """Return True if `text` is JSON that is cut off inside a string."""
    try:
        json.loads(text)
    except json.JSONDecodeError as exc:
        return exc.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):
        pass
    return False


def _quoted(text: str) -> str:
    return json.dumps(text)
