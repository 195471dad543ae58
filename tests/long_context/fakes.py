"""A model with a small context window, and long texts with a needle in them."""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from optillm_hooks.errors import CONTEXT_WINDOW_EXCEEDED, ProviderFailed
from optillm_hooks.llm import ModelFacts
from optillm_hooks.testing import AnsweringLLM, Reply
from optillm_hooks.types import Chat, Completion, Sampling, Usage

NEEDLE = "The password of the north gate is heliotrope-71."
QUESTION = "What is the password of the north gate?"
WINDOW = 8192

_PART = re.compile(r"<part 1 (\w{16})>\n(.*)\n</part 1 \1>", re.DOTALL)


def tokens(text: str) -> int:
    """Return about the tokens of English text."""
    return len(text) // 4 + 1


def count(chat: Chat, sampling: Sampling) -> int:
    fields = sum(tokens(repr(value)) for value in sampling.fields.values())
    parts = [part for m in chat if isinstance(m.content, tuple) for part in m.content]
    media = sum(100 + len(repr(part)) // 16 for part in parts if part.get("type") != "text")
    return fields + media + sum(tokens(m.text) + 4 + tokens(repr(m.fields)) for m in chat)


def filler(length: int, start: int = 0) -> str:
    """Return text of about `length` tokens that says nothing of the needle."""
    numbers = itertools.count(start)
    line = "Item {} of the ledger was weighed, found correct and put back on its shelf."
    return "\n".join(line.format(next(numbers)) for _ in range(length // 19))


def haystack(length: int, at: float = 0.4) -> str:
    """Return text of about `length` tokens with the needle at a share of it."""
    before = int(length * at)
    return f"{filler(before)}\n{NEEDLE}\n{filler(length - before, before)}"


def noted(text: str) -> str:
    """Return what a reader of a part replies."""
    return f'{{"notes": ["{NEEDLE}"]}}' if NEEDLE in text else '{"notes": []}'


class SmallLLM(AnsweringLLM):
    """Refuses prompts beyond its window as providers do; reads parts; answers by the needle.

    It finds the password only in a prompt that has it. `reading` replies to a part.
    """

    def __init__(
        self,
        reading: Callable[[str], Reply] = noted,
        *,
        window: int = WINDOW,
        known: bool = True,
        fields: Sequence[str] = (),
    ) -> None:
        super().__init__(self._billed, fields=fields)
        self.facts: ModelFacts = replace(
            self.facts, count_tokens=count, max_input_tokens=window if known else None
        )
        self._window = window
        self._reading = reading

    def _billed(self, chat: Chat, sampling: Sampling) -> Reply:
        reply = self._reply(chat, sampling)
        if not isinstance(reply, str):
            return reply
        prompt, completion = count(chat, sampling), tokens(reply)
        usage = Usage(calls=1, prompt_tokens=prompt, completion_tokens=completion)
        return Completion(reply, usage=usage)

    def _reply(self, chat: Chat, sampling: Sampling) -> Reply:
        prompt = count(chat, sampling)
        if prompt + (sampling.max_tokens or 1) > self._window:
            return ProviderFailed(
                f"This model's maximum context length is {self._window} tokens. However, your "
                f"messages resulted in {prompt} tokens.",
                status=400,
                code=CONTEXT_WINDOW_EXCEEDED,
            )
        part = _PART.search(chat[-1].text)
        if part is not None:
            return self._reading(part[2])
        seen = "\n".join(message.text for message in chat)
        return "heliotrope-71" if "heliotrope-71" in seen else "I do not know."

    @property
    def parts(self) -> list[str]:
        """The parts that were read, in the order of the calls."""
        found = (_PART.search(chat[-1].text) for chat, _ in self.calls)
        return [part[2] for part in found if part is not None]
