"""Which of two answers is better: by a judge that does not know which is which, or by a check."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Final, Literal

from optillm_hooks.answers.equivalence import equivalent
from optillm_hooks.answers.extraction import extract_answer, without_reasoning
from optillm_hooks.answers.patterns import Pattern
from optillm_hooks.gateway.shadow_log import Verdict
from optillm_hooks.messages import read_chat, write_chat
from optillm_hooks.prompts import ask, data_notice, enclose, fence

_TASK: Final = """\
Two assistants have answered the conversation above. {notice}

{answers}

Which answer is more correct and more helpful to the user? Length alone is no merit. Explain in a \
few sentences, then end with one line: BETTER: 1, BETTER: 2, or BETTER: tie."""

_VERDICT: Final = Pattern(r"(?i)better: {0,4}(1|2|tie)")
_AROUND: Final = " \t*_#>`.[]()"
"""Marks that models put around a line."""


def shuffled(served: str, shadow: str, rng: Random) -> tuple[tuple[str, str], bool]:
    """Return both answers in a random order, and whether the shadow's is the first."""
    shadow_first = rng.random() < 0.5
    return ((shadow, served) if shadow_first else (served, shadow)), shadow_first


def judging(messages: object, answers: Sequence[str]) -> list[dict[str, Any]]:
    """Return the messages that ask a judge for the better one of two answers."""
    chat = read_chat(messages)
    shown = [without_reasoning(answer).strip() for answer in answers]
    mark = fence(chat, shown)
    notice = data_notice("answer", mark)
    task = _TASK.format(notice=notice, answers=enclose(shown, "answer", mark))
    return write_chat(ask(chat, task))


def read_verdict(reply: str, *, shadow_first: bool) -> Verdict | None:
    """Return a judge's verdict by the last line that has one; None if there is none."""
    for line in reversed(without_reasoning(reply).splitlines()):
        plain = line.strip(_AROUND).replace("*", "")
        if (found := _VERDICT.fullmatch(plain)) is not None:
            said = found[1].lower()
            return "tie" if said == "tie" else _side(first=said == "1", shadow_first=shadow_first)
    return None


def _side(*, first: bool, shadow_first: bool) -> Verdict:
    return "shadow" if first == shadow_first else "served"


def checked(
    kind: Literal["auto", "number", "choice", "exact"],
    messages: Sequence[Mapping[str, Any]],
    served: str,
    shadow: str,
) -> Verdict | None:
    """Return whether the final answers are the same; None if one has none that can be read."""
    if kind == "exact":
        equal = without_reasoning(served).strip() == without_reasoning(shadow).strip()
        return "same" if equal else "different"
    question = read_chat([*messages])[-1].text
    one, other = (extract_answer(text, kind, question=question) for text in (served, shadow))
    if one is None or other is None:
        return None
    return "same" if equivalent(one, other) else "different"
