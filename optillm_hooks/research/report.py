"""A report in sections, which is revised section by section as notes come in."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from optillm_hooks.answers.citations import CitationFilter, Cited, checked
from optillm_hooks.research.forms import Section, line
from optillm_hooks.research.gathering import Finding
from optillm_hooks.research.sources import Sources

_MAX_NOTES: Final = 40
"""Maximum notes that one section is written from: the newest."""

_MARKS: Final = str.maketrans("", "", "#[]()<>`*_|\\")


@dataclass(slots=True)
class ReportDraft:
    """The draft of a report, with the notes that it is written from."""

    sections: Sequence[Section]
    sources: Sources
    sources_heading: str
    known: Sequence[str]
    """Addresses that the user wrote, which the report may repeat."""

    texts: list[str] = field(default_factory=list[str])
    notes: list[Finding] = field(default_factory=list[Finding])

    def __post_init__(self) -> None:
        self.texts = [""] * len(self.sections)
        self.sources_heading = line(self.sources_heading.translate(_MARKS), 40) or "Sources"

    @property
    def citable(self) -> dict[int, Cited]:
        """The sources that a note was taken from."""
        return self.sources.cited({note.source for note in self.notes})

    def add(self, notes: Iterable[Finding]) -> list[int]:
        """Add notes, and return the numbers of the sections that they are for, from 1."""
        known = set(self.notes)
        new = [note for note in dict.fromkeys(notes) if note not in known]
        self.notes += new
        return sorted({note.section for note in new})

    def notes_of(self, section: int) -> list[str]:
        """Return the notes of a section, with the numbers of their sources."""
        found = [str(note) for note in self.notes if note.section == section]
        return found[-_MAX_NOTES:]

    def all_notes(self, most: int | None = None) -> list[str]:
        """Return the notes of all sections, by section, with the numbers of their sources.

        `most`: the characters that they may have. Every section has its share of them.
        """
        of_each = [self.notes_of(number) for number in range(1, len(self.sections) + 1)]
        if most is None:
            return [note for notes in of_each for note in notes]
        share = most // max(1, len([notes for notes in of_each if notes]))
        return [note for notes in of_each for note in _within(notes, share)]

    def drafts(self) -> list[str]:
        """Return each section with its heading."""
        pairs = zip(self.sections, self.texts, strict=True)
        return [f"{section.heading}\n\n{text.strip()}" for section, text in pairs]

    def text(self) -> str:
        """Return the whole draft in markdown, with the numbers of its sources."""
        return "\n\n".join(
            f"## {section.heading}\n\n{text.strip()}"
            for section, text in zip(self.sections, self.texts, strict=True)
            if text.strip()
        )

    def filter(self) -> CitationFilter:
        """Return a filter for a report that is written from this draft."""
        return CitationFilter(self.citable, self.sources_heading, self.known)

    def shown(self) -> str:
        """Return the draft as the user can get it."""
        return checked(self.text(), self.citable, self.sources_heading, self.known)


def _within(notes: Sequence[str], most: int) -> list[str]:
    """Return the last of `notes` that have at most `most` characters together, in their order."""
    kept: list[str] = []
    for note in reversed(notes):
        most -= len(note)
        if most < 0:
            break
        kept.append(note)
    return kept[::-1]
