"""Text that comes in pieces: where it stops, and where thinking ends."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from optillm_hooks.answers.section_filter import overlap
from optillm_hooks.decoding.markers import MARKERS, Markers


class StopFinder:
    """Finds the first of several strings in a text that comes in pieces.

    What might be the beginning of one is held back until it is certain.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """Return what can be shown now; after a stop string was found, nothing more."""
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
        """Return what was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held


class Parted(NamedTuple):
    """A piece of a reply: what is shown of it, and what was thinking."""

    text: str
    reasoning: str


class ThinkSplitter:
    """Parts a reply that begins with a block of thinking into its reasoning and its text.

    `opened`: the prompt ends with the marker already, as some chat templates have it.
    """

    def __init__(self, *, opened: bool = False, markers: Markers = MARKERS) -> None:
        self._opening, self._closing = markers
        self._held = ""
        self._state: Literal["start", "thinking", "after", "text"] = (
            "thinking" if opened else "start"
        )

    @property
    def thinking(self) -> bool:
        return self._state == "thinking"

    def feed(self, text: str) -> Parted:
        """Return what can be shown; the beginning of a marker is held back until it is certain."""
        self._held += text
        reasoning = ""
        if self._state == "start":
            begun = self._held.lstrip()
            if self._opening.startswith(begun):
                return Parted("", "")
            self._state = "thinking" if begun.startswith(self._opening) else "text"
            if self._state == "thinking":
                self._held = begun.removeprefix(self._opening).lstrip("\n")
        if self._state == "thinking":
            reasoning, marker, rest = self._held.partition(self._closing)
            if not marker:
                keep = len(reasoning) - overlap(reasoning, self._closing)
                self._held = reasoning[keep:]
                return Parted("", reasoning[:keep])
            self._state, self._held = "after", rest
        if self._state == "after":
            self._held = self._held.lstrip("\n")
            self._state = "text" if self._held else "after"
        shown, self._held = self._held, ""
        return Parted(shown, reasoning)

    def close(self) -> Parted:
        """Return what was held back, now that no more comes."""
        held, self._held = self._held, ""
        return Parted("", held) if self.thinking else Parted(held, "")
