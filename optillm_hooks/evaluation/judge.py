"""A judge of an evaluation: a model of the same endpoint that compares replies with answers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import openai
from openai import AsyncOpenAI, omit
from openai.types.chat import ChatCompletion

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.evaluation.grading import Grade
from optillm_hooks.gateway.refusals import refused_fields
from optillm_hooks.judging.verdicts import JUDGING, ask_twice, says, shown
from optillm_hooks.prompts import data_notice, enclose, fence
from optillm_hooks.types import Chat, Completion, Message, Sampling

_PLEA: Final = "Give the verdict alone: RIGHT or WRONG."
_TRIES: Final = 4
"""How often a request is made again, after the pause that the host asks for."""


@dataclass(frozen=True, slots=True)
class EndpointModel:
    """A model behind an endpoint, which gives whole replies."""

    client: AsyncOpenAI
    model: str

    async def complete(self, chat: Chat, sampling: Sampling, /) -> Completion:
        """Return a reply; without a temperature if the model refuses it."""
        try:
            completion = await self._asked(chat, sampling)
        except ProviderFailed as failed:
            if "temperature" not in refused_fields(failed, sampling):
                raise
            completion = await self._asked(chat, replace(sampling, temperature=None))
        choices = completion.choices or []
        if not choices:
            return Completion("")
        return Completion(choices[0].message.content or "", finish_reason=choices[0].finish_reason)

    async def _asked(self, chat: Chat, sampling: Sampling) -> ChatCompletion:
        try:
            return await self.client.chat.completions.create(
                model=self.model,
                messages=[_as_json(message) for message in chat],  # type: ignore[misc]
                temperature=omit if sampling.temperature is None else sampling.temperature,
            )
        except openai.OpenAIError as exc:
            status = getattr(exc, "status_code", 502)
            raise ProviderFailed(type(exc).__name__, status=status) from exc


def _as_json(message: Message) -> Mapping[str, Any]:
    return {"role": message.role, "content": message.text}


@dataclass(frozen=True, slots=True)
class ReferenceJudge:
    """Says whether replies agree with answers that are known."""

    model: str
    url: str
    key: str
    timeout_s: float

    async def grade(self, question: str, answer: str, reply: str) -> Grade | None:
        """Return the verdict on a reply; None if the judge gives none, asked twice."""

        async def read(text: str) -> Grade | None:
            right, wrong = says("RIGHT", text), says("WRONG", text)
            if right == wrong:
                return None
            return "right" if right else "wrong"

        async with AsyncOpenAI(
            base_url=self.url, api_key=self.key, max_retries=_TRIES, timeout=self.timeout_s
        ) as client:
            llm = EndpointModel(client, self.model)
            return await ask_twice(llm, _prompt(question, answer, reply), JUDGING, read, _PLEA)


def _prompt(question: str, answer: str, reply: str) -> Chat:
    texts = [question, answer, *shown([reply])]
    mark = fence((), texts)
    return (
        Message(
            "user",
            f"""\
Decide whether a reply to a question is right. {data_notice("text", mark)}

Text 1 is the question, text 2 the answer that is known to be right, text 3 the reply.

{enclose(texts, "text", mark)}

The reply is right if its final answer means the same as the known answer. Other words, another \
notation and more detail do no harm. It is wrong if it contradicts the known answer, lacks a part \
of it, or does not settle on one answer. Do not answer the question yourself. You may think \
first. End with a line that is one word: RIGHT or WRONG.""",
        ),
    )


@dataclass(frozen=True, slots=True)
class ByJudge:
    """Right if the judge says that the reply agrees with the answer that is known."""

    judge: ReferenceJudge
    question: str
    answer: str

    async def __call__(self, reply: str) -> Grade | None:
        if not reply.strip():
            return "unread"
        return await self.judge.grade(self.question, self.answer, reply)
