"""Splits a streamed reply into text and tool calls."""

from dataclasses import replace
from typing import Literal, NamedTuple

from optillm_hooks.answers.section_filter import overlap
from optillm_hooks.local_provider.tool_calls.base import Span
from optillm_hooks.local_provider.tool_calls.tools import Tools, new_id
from optillm_hooks.types import ToolCall

_MAX_CHECKS = 8
"""How many closing markers in strings of a call are looked at, each by parsing the call so far."""


class Found(NamedTuple):
    """A piece of a reply: its text, and the calls that follow it."""

    text: str
    calls: tuple[ToolCall, ...] = ()


class CallFinder:
    """Splits a streamed reply into text and tool calls.

    Text that may be the beginning of a call is held back until that is known. A call names a tool
    of the request and has an object as its arguments; anything else is text. Whitespace around
    calls is dropped, and without parallel calls, so is everything after the first call.
    """

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._state: Literal["text", "call"] = "text"
        self._blanks: list[str] = []
        """Whitespace that is dropped if a call follows."""

        self._end = ""
        """The end of what came that may be the beginning of a marker."""

        self._span = Span("")
        """The markers of the call that is open."""

        self._body: list[str] = []
        """What came of that call."""

        self._checks = 0
        """How many closing markers were in a string of the call."""

        self._begun = False
        """Whether there was text other than whitespace."""

        self._ids: set[str] = set()
        self.calls = 0

    @property
    def done(self) -> bool:
        """True if the only allowed call is complete."""
        return self.calls > 0 and not self._tools.parallel

    def feed(self, text: str) -> Found:
        """Return the text and calls that are certain by now."""
        shown, calls = list[str](), tuple[ToolCall, ...]()
        while text and not self.done:
            found, text = (self._in_call if self._state == "call" else self._in_text)(text)
            shown.append(found.text)
            calls += found.calls
        return Found("".join(shown), calls)

    def close(self) -> Found:
        """Return what was held back; no more follows."""
        if self._state == "call":
            if not self._span.closing or self._span.closed_by_end:
                return self._read("".join(self._body), closing="")
            return Found("".join([*self._blanks, self._span.opening, *self._body]))
        held = "".join([*self._blanks, self._end])
        return Found("" if self.calls and (self.done or not held.strip()) else held)

    def _in_text(self, piece: str) -> tuple[Found, str]:
        """Return the certain text of what has come up to `piece`, and what is still to be read."""
        form = self._tools.form
        text = self._end + piece
        if not self._begun and text.lstrip().startswith(tuple(form.bare)):
            self._end = ""
            self._open(Span(""))
            return Found(""), text
        openings = [(at, s) for s in form.spans if (at := text.find(s.opening)) >= 0]
        at, span = min(openings, default=(len(text), None))
        hold = max((overlap(text, s.opening) for s in form.spans), default=0)
        certain = text[: at if span else len(text) - hold]
        self._end = "" if span else text[len(certain) :]
        shown = certain.rstrip()
        if shown:
            self._begun = True
            shown, self._blanks = "".join([*self._blanks, shown]), []
        self._blanks.append(certain[len(certain.rstrip()) :])
        if span is None:
            return Found(shown), ""
        self._open(span)
        return Found(shown), text[at + len(span.opening) :]

    def _open(self, span: Span) -> None:
        self._state, self._span = "call", span
        self._body, self._checks = [], 0

    def _in_call(self, piece: str) -> tuple[Found, str]:
        """Return the calls that end in `piece`, or else their text, and what follows them.

        A closing marker in a string of the call does not end it, unless there are many of these.
        """
        closing = self._span.closing
        self._body.append(piece)
        if not closing:
            return Found(""), ""
        text = self._end + piece
        end = text.find(closing)
        while end >= 0:
            body = "".join(self._body)
            self._body = [body]
            at = len(body) - len(text) + end
            if self._checks == _MAX_CHECKS or not self._tools.is_cut(self._inside + body[:at]):
                return self._read(body[:at], closing), body[at + len(closing) :]
            self._checks += 1
            end = text.find(closing, end + 1)
        self._end = text[len(text) - overlap(text, closing) :]
        return Found(""), ""

    @property
    def _inside(self) -> str:
        return self._span.opening if self._span.inside else ""

    def _read(self, body: str, closing: str) -> Found:
        """Return the calls in `body`; if there are none, the text of the whole span."""
        calls = tuple(map(self._unique, self._tools.read(self._inside + body)))
        written = "".join([*self._blanks, self._span.opening, body, closing])
        self._state, self._end, self._blanks, self._body = "text", "", [], []
        self._begun = True
        self.calls += len(calls)
        return Found("", calls) if calls else Found(written)

    def _unique(self, call: ToolCall) -> ToolCall:
        """Return `call` with an id that no other call of the reply has."""
        if call.id in self._ids:
            call = replace(call, id=new_id())
        self._ids.add(call.id)
        return call
