"""What a model is told of a program that was run: its output as data, cut to a length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from optillm_hooks.code_execution.runner import SnippetResult
from optillm_hooks.prompts import ask, data_notice, enclose, fence
from optillm_hooks.types import Chat

MAX_SHOWN: Final = 8000
"""Maximum characters of the output that a model is shown."""

_NO_RESULT: Final = "it had too little time or memory"


@dataclass(frozen=True, slots=True)
class Ran:
    """A program, and what came of it."""

    program: str
    output: str
    stderr: str = ""
    error: str = ""
    """The first error; empty if there is none."""

    @property
    def cut(self) -> bool:
        """Whether a model is shown only a part of the output."""
        return max(len(self.output), len(self.stderr)) > MAX_SHOWN

    @property
    def parts(self) -> list[str]:
        """The program, and its outcome, as data for a model."""
        told = [f"It printed:\n{shortened(self.output)}" if self.output else "It printed nothing."]
        if self.stderr:
            told.append(f"On standard error:\n{shortened(self.stderr)}")
        if self.error:
            told.append(f"It failed: {shortened(self.error)}")
        return [self.program, "\n\n".join(told)]


def ran_program(snippets: Sequence[str], results: Sequence[SnippetResult]) -> Ran:
    """Return the outcome of a session as that of one program."""
    error = next((result.error for result in results if result.error), "")
    return Ran(
        program="\n\n".join(snippets),
        output="".join(result.output for result in results),
        stderr="".join(result.stderr for result in results),
        error=error or ("" if len(results) == len(snippets) else _NO_RESULT),
    )


def shortened(text: str) -> str:
    """Return `text`, without its middle if it is longer than a model is shown."""
    if len(text) <= MAX_SHOWN:
        return text
    left = len(text) - MAX_SHOWN
    return f"{text[: MAX_SHOWN // 2]}\n[{left} characters left out]\n{text[-MAX_SHOWN // 2 :]}"


def show(chat: Chat, parts: Sequence[str], introduction: str, request: str) -> Chat:
    """Return `chat` with `parts` as data, between an introduction and what is asked for."""
    mark = fence(chat, parts)
    notice, shown = data_notice("part", mark), enclose(parts, "part", mark)
    return ask(chat, f"{introduction} {notice}\n\n{shown}\n\n{request}")
