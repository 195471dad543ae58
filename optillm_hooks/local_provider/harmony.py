"""Parses replies in Harmony, the format of GPT-OSS: messages in channels.

Source: OpenAI, "OpenAI Harmony response format", https://cookbook.openai.com/articles/openai-harmony.
"""

import re
from typing import Literal

from optillm_hooks.answers.section_filter import overlap
from optillm_hooks.local_provider.reasoning import CALL, CHANNEL, END, MESSAGE, RETURN, START
from optillm_hooks.local_provider.reply_reader import Shown
from optillm_hooks.local_provider.tool_calls.tools import Tools

_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_BEGINNINGS = (CHANNEL, START, MESSAGE, "to=")
_ENDS = (END, CALL, RETURN, START)
_BETWEEN = "\n\n"
"""What separates the texts of several messages, and their reasoning."""


class HarmonyReader:
    """Parses a streamed reply of Harmony messages into reasoning, text and tool calls.

    The analysis channel is reasoning, and the other channels are text. A message to one of the
    `tools` is a call; any other stays text, with its header if there are tools. A reply whose
    beginning is no header is text.

    `opened`: the prompt ends inside a message of the analysis channel.
    """

    def __init__(self, *, opened: bool = False, tools: Tools | None = None) -> None:
        self._tools = tools
        self._state: Literal["start", "header", "message", "between"] = "start"
        self._held: list[str] = []
        """The header so far, or the call so far."""

        self._end = ""
        """The end of what came that may be the beginning of a marker."""

        self._channel = "analysis" if opened else "final"
        self._recipient = ""
        self._separators = {"text": "", "reasoning": ""}
        self._calls = 0
        if opened:
            self._state = "message"

    @property
    def thinking(self) -> bool:
        return self._state == "message" and self._channel == "analysis" and not self._is_call

    @property
    def called(self) -> bool:
        """True if there were tool calls."""
        return self._calls > 0

    @property
    def done(self) -> bool:
        """True if the rest of the reply would be ignored."""
        return self.called and self._tools is not None and not self._tools.parallel

    @property
    def _is_call(self) -> bool:
        return bool(self._recipient) and self._tools is not None

    def feed(self, text: str) -> Shown:
        """Return the part of the reply that is certain by now."""
        shown = Shown()
        text = self._end + text
        self._end = ""
        while text and not self.done:
            part, text = self._next(text)
            shown = shown.plus(part)
        return shown

    def close(self) -> Shown:
        """Return what was held back; no more follows."""
        rest, self._end = self._end, ""
        if self._state == "message" and not self.done:
            shown = self._content(rest)
            return shown.plus(self._message_end()) if self._is_call else shown
        held = "".join([*self._held, rest])
        return Shown(held if self._state == "start" else "")

    def _next(self, text: str) -> tuple[Shown, str]:
        """Return what is certain of `text`, and what is still to be read of it."""
        if self._state == "start":
            return self._start(text)
        if self._state == "message":
            at, marker = _first(text, _ENDS)
            if not marker:
                self._end = text[at:]
                return self._content(text[:at]), ""
            shown = self._content(text[:at]).plus(self._message_end())
            self._state = "header" if marker == START else "between"
            return shown, text[at + len(marker) :]
        expected = MESSAGE if self._state == "header" else START
        at, marker = _first(text, (expected,))
        if self._state == "header":
            self._held.append(text[:at])
        if not marker:
            self._end = text[at:]
            return Shown(), ""
        if self._state == "header":
            self._read_header()
        self._state = "message" if self._state == "header" else "header"
        return Shown(), text[at + len(marker) :]

    def _start(self, text: str) -> tuple[Shown, str]:
        """Decide whether the reply begins with a header."""
        begun = text.lstrip()
        if any(beginning.startswith(begun) for beginning in _BEGINNINGS):
            self._end = text
            return Shown(), ""
        self._state = "header" if begun.startswith(_BEGINNINGS) else "message"
        if begun.startswith(START):
            text = begun.removeprefix(START)
        return Shown(), text

    def _read_header(self) -> None:
        header = "".join(self._held)
        channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
        self._channel = channel[1] if channel else "final"
        self._recipient = recipient[1] if recipient else ""
        self._held = [header.removeprefix("assistant")] if self._is_call else []

    def _content(self, text: str) -> Shown:
        """Return a part of a message; calls are held back until they are complete."""
        if self._is_call:
            self._held.append(text)
            return Shown()
        kind = "reasoning" if self._channel == "analysis" else "text"
        if not text:
            return Shown()
        separator, self._separators[kind] = self._separators[kind], ""
        text = separator + text
        return Shown(reasoning=text) if kind == "reasoning" else Shown(text)

    def _message_end(self) -> Shown:
        """Return the call that ends here, or its text if it is none."""
        was_call = self._is_call
        header, content = self._held[:1], "".join(self._held[1:])
        recipient, self._recipient, self._held = self._recipient, "", []
        kind = "reasoning" if self._channel == "analysis" else "text"
        if not was_call or self._tools is None:
            self._separators[kind] = _BETWEEN
            return Shown()
        calls = self._tools.read(f"{recipient}{MESSAGE}{content}")
        self._calls += len(calls)
        if calls:
            return Shown(calls=calls)
        self._channel = "final"
        return self._content("".join([*header, MESSAGE, content]))


def _first(text: str, markers: tuple[str, ...]) -> tuple[int, str]:
    """Return where the first of `markers` is, and which; without one, where one may begin."""
    found = [(at, marker) for marker in markers if (at := text.find(marker)) >= 0]
    hold = max(overlap(text, marker) for marker in markers)
    return min(found, default=(len(text) - hold, ""))
