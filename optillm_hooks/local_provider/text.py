"""Streamed text: finding stop strings, and separating reasoning from the answer."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from optillm_hooks.answers.section_filter import overlap
from optillm_hooks.decoding.markers import Markers
from optillm_hooks.local_provider.reasoning import THINK, ReasoningFormat


class StopFinder:
    """Finds the first of several stop strings in streamed text.

    Text that may be the beginning of a stop string is held back until that is known.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        """`include`: the text that is returned ends with the stop string."""
        self._stops = tuple(stops)
        self._include = include
        self._held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """Return the text up to any stop string; after a stop string, nothing."""
        if self.found:
            return ""
        text = self._held + text
        found = [(at, len(stop)) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.found, self._held = True, ""
            start, length = min(found)
            return text[: start + length if self._include else start]
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
    """Splits a streamed reply that may begin with reasoning into reasoning and text.

    The markers around an answer are dropped. `opened`: the prompt already ends with the opening
    marker of the reasoning, as with some chat templates.
    """

    def __init__(self, *, opened: bool = False, reasoning: ReasoningFormat = THINK) -> None:
        self._format = reasoning
        self._held = ""
        self._blanks: list[str] = []
        """Whitespace with which the reply begins, which is text if no thinking follows."""

        self._end = ""
        """The closing marker of the answer, if the answer has markers."""

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
        if self._state == "start" and not self._started():
            return Split("", "")
        if self._state == "thinking":
            closing = self._format.closing
            reasoning, marker, rest = self._held.partition(closing)
            if not marker:
                keep = len(reasoning) - overlap(reasoning, closing)
                self._held = reasoning[keep:]
                return Split("", reasoning[:keep])
            self._state, self._held = "after", rest
        if self._state == "after":
            self._held = self._held.lstrip("\n")
            if not self._unwrapped(self._format.wrappers):
                return Split("", reasoning)
        return Split(self._answer(), reasoning)

    def close(self) -> Split:
        """Return what was held back; no more follows."""
        held, self._held = self._held, ""
        if self._state == "start":
            held = "".join([*self._blanks, held])
        return Split("", held) if self.thinking else Split(held, "")

    def _started(self) -> bool:
        """Find out how the reply begins; return False if that is not certain yet."""
        begun = self._held.lstrip()
        self._blanks.append(self._held[: len(self._held) - len(begun)])
        self._held = begun
        opening = self._format.opening
        if opening.startswith(begun):
            return False
        if begun.startswith(opening):
            self._state = "thinking"
            self._held = begun.removeprefix(opening).lstrip("\n")
            return True
        wrappers = self._format.wrappers if self._format.always_wrapped else ()
        if not self._unwrapped(wrappers):
            return False
        if not self._end:
            self._held = "".join([*self._blanks, begun])
        return True

    def _unwrapped(self, wrappers: Sequence[Markers]) -> bool:
        """Drop the marker before the answer; return False if it is not certain whether one comes.

        The answer begins with its first character.
        """
        if not self._held or any(opening.startswith(self._held) for opening, _ in wrappers):
            return False
        self._state = "text"
        for opening, closing in wrappers:
            if self._held.startswith(opening):
                self._held, self._end = self._held.removeprefix(opening).lstrip("\n"), closing
        return True

    def _answer(self) -> str:
        """Return the text of the answer that is certain by now."""
        shown, self._held = self._held, ""
        if self._end:
            shown, marker, rest = shown.partition(self._end)
            if marker:
                self._end = ""
                return shown + rest
            keep = len(shown) - overlap(shown, self._end)
            shown, self._held = shown[:keep], shown[keep:]
        return shown
