"""Streamed text: finding stop strings, and separating reasoning from the answer."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from optillm_hooks.answers.section_filter import overlap
from optillm_hooks.decoding.markers import MARKERS, Markers


class StopFinder:
    """Finds the first of several stop strings in streamed text.

    Text that may be the beginning of a stop string is held back until that is known.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """Return the text that precedes any stop string; after a stop string, nothing."""
        if self.found:
            return ""
        text = self._held + text
        ends = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)]
        hold = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def close(self) -> str:
        """Return the text that was held back; no more follows."""
        held, self._held = self._held, ""
        return held


class Split(NamedTuple):
    """A piece of a reply: answer text and reasoning."""

    text: str
    reasoning: str


class ThinkSplitter:
    """Splits a streamed reply that may begin with a thinking block into reasoning and text.

    `opened`: the prompt already ends with the opening marker, as with some chat templates.
    """

    def __init__(self, *, opened: bool = False, markers: Markers = MARKERS) -> None:
        self._opening, self._closing = markers
        self._held = ""
        self._blanks: list[str] = []
        """Whitespace with which the reply begins, which is text if no thinking follows."""

        self._state: Literal["start", "thinking", "after", "text"] = (
            "thinking" if opened else "start"
        )

    @property
    def thinking(self) -> bool:
        return self._state == "thinking"

    def feed(self, text: str) -> Split:
        """Return the text that is certain by now; a possible beginning of a marker is held back."""
        self._held += text
        reasoning = ""
        if self._state == "start":
            begun = self._held.lstrip()
            self._blanks.append(self._held[: len(self._held) - len(begun)])
            self._held = begun
            if self._opening.startswith(begun):
                return Split("", "")
            self._state = "thinking" if begun.startswith(self._opening) else "text"
            if self._state == "thinking":
                self._held = begun.removeprefix(self._opening).lstrip("\n")
            else:
                self._held = "".join([*self._blanks, begun])
        if self._state == "thinking":
            reasoning, marker, rest = self._held.partition(self._closing)
            if not marker:
                keep = len(reasoning) - overlap(reasoning, self._closing)
                self._held = reasoning[keep:]
                return Split("", reasoning[:keep])
            self._state, self._held = "after", rest
        if self._state == "after":
            self._held = self._held.lstrip("\n")
            self._state = "text" if self._held else "after"
        shown, self._held = self._held, ""
        return Split(shown, reasoning)

    def close(self) -> Split:
        """Return what was held back; no more follows."""
        held, self._held = self._held, ""
        if self._state == "start":
            held = "".join([*self._blanks, held])
        return Split("", held) if self.thinking else Split(held, "")
