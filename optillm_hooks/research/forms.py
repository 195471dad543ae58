"""What a model is asked to fill in during a research, and the bounds of what it writes."""

from collections.abc import Sequence
from typing import Final

from pydantic import BaseModel, Field

MAX_QUERY: Final = 300
MAX_LINE: Final = 300
MAX_CLAIM: Final = 600
MAX_SECTIONS: Final = 8
"""Bounds of what is taken from a form; longer texts are cut."""


def line(text: str, most: int = MAX_LINE) -> str:
    """Return `text` in one line of at most `most` characters."""
    return " ".join(text[: 4 * most].split())[:most].strip()


class Question(BaseModel):
    """One question of the research."""

    question: str = Field(description="A question that one or a few web pages can answer.")
    query: str = Field(description="A short query for a web search engine that finds them.")
    section: int = Field(
        default=1, description="The number of the section that needs the answer, from 1."
    )


class Section(BaseModel):
    """A section of the report."""

    heading: str = Field(description="Its heading.")
    covers: str = Field(default="", description="What it has to say, in one sentence.")


class Plan(BaseModel):
    """The plan of a report."""

    sections: list[Section] = Field(
        min_length=1, description="The sections of the report, in their order; two to six."
    )
    questions: list[Question] = Field(
        min_length=1, description="The questions to look up first, the most important one first."
    )
    sources_heading: str = Field(
        default="Sources",
        description="The heading 'Sources' in the language of the report.",
    )


class Gaps(BaseModel):
    """What a draft still lacks."""

    questions: list[Question] = Field(
        description="Questions whose answers the draft lacks, the most important one first; none "
        "if it is complete."
    )


class Note(BaseModel):
    """A fact from a page."""

    page: int = Field(description="The number of the page that states it.")
    claim: str = Field(description="The fact, in one or two sentences of your own.")
    quote: str = Field(
        description="The words of the page that state it: 5 to 40 words, copied exactly."
    )


class Notes(BaseModel):
    """The facts from several pages."""

    notes: list[Note] = Field(description="The facts, the most important first; none if none help.")


def sections_of(plan: Plan) -> list[Section]:
    """Return the plan's sections, within bounds and each heading once."""
    found: dict[str, Section] = {}
    for each in plan.sections[:MAX_SECTIONS]:
        heading = line(each.heading.lstrip("# "), 120)
        if heading:
            found.setdefault(heading.casefold(), Section(heading=heading, covers=line(each.covers)))
    return list(found.values())


def questions_of(asked: Sequence[Question], most: int, sections: int) -> list[Question]:
    """Return at most `most` questions, within bounds, each for a section that exists."""
    found = []
    for each in asked[:most]:
        question = line(each.question) or line(each.query)
        if question:
            query = line(each.query, MAX_QUERY) or line(each.question, MAX_QUERY)
            section = each.section if 1 <= each.section <= sections else 1
            found.append(Question(question=question, query=query, section=section))
    return found
