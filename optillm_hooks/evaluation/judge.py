"""A judge of an evaluation: a model of the same endpoint that grades the replies of others."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from random import Random
from ssl import SSLContext
from typing import Any, Final

import httpx
import openai
from openai import AsyncOpenAI

from optillm_hooks.answers.verdicts import last_part, read_choice
from optillm_hooks.errors import ProviderFailed
from optillm_hooks.evaluation.bills import NOTHING, Bill
from optillm_hooks.evaluation.grading import Grade, Judged
from optillm_hooks.evaluation.replies import FieldNames, Messages, Reply, ask_host, failure
from optillm_hooks.evaluation.spend_log import Run
from optillm_hooks.judging.choosing import BEST, choice_prompt
from optillm_hooks.judging.verdicts import JUDGING, ask_twice, says, shown
from optillm_hooks.messages import write_chat
from optillm_hooks.prompts import data_notice, enclose, fence
from optillm_hooks.types import Chat, Completion, Message, Sampling

_TRIES: Final = 4
"""How often a request is made again, after the pause that the host asks for."""


@cache
def _tls() -> SSLContext:
    """Return the context of all connections, which takes longer to make than most calls."""
    return httpx.create_ssl_context()


@dataclass(frozen=True, slots=True)
class EndpointModel:
    """A model behind an endpoint of OpenAI's API."""

    name: str
    url: str
    key: str
    timeout_s: float
    run: Run
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Fields of every request."""

    names: FieldNames = field(default_factory=FieldNames)

    async def reply(self, messages: Messages, **fields: Any) -> Reply:
        """Return a reply; `fields` are those of this request.

        Raises:
            ProviderFailed: there is none.
        """
        async with AsyncOpenAI(
            base_url=self.url,
            api_key=self.key,
            max_retries=_TRIES,
            timeout=self.timeout_s,
            default_headers=self.run.headers(),
            http_client=openai.DefaultAsyncHttpxClient(verify=_tls()),
        ) as client:
            try:
                asked = {**self.fields, **fields}
                return await ask_host(client, self.names, self.name, messages, asked)
            except openai.OpenAIError as exc:
                status = getattr(exc, "status_code", 502)
                raise ProviderFailed(failure(exc), status=status) from exc


Read = Callable[[str], Awaitable[Grade | None]]


class _Metered:
    """A model that is asked for a verdict, with what its calls have cost."""

    def __init__(self, model: EndpointModel, bill: Bill = NOTHING) -> None:
        self._model = model
        self._bill = bill
        self._failed: ProviderFailed | None = None

    async def judged(self, prompt: Chat, read: Read, plea: str) -> Judged:
        """Return the model's verdict; without one, the fault is how the last call failed."""
        grade: Grade | None = await ask_twice(self, prompt, JUDGING, read, plea)
        if grade is None and self._failed is not None:
            return Judged(None, self._bill, f"the judge failed: {self._failed}")
        return Judged(grade, self._bill)

    async def complete(self, chat: Chat, sampling: Sampling, /) -> Completion:
        """Return a reply."""
        try:
            reply = await self._reply(chat, sampling)
        except ProviderFailed as failed:
            self._failed = failed
            raise
        self._failed = None
        self._bill += reply.bill
        return Completion(reply.text, finish_reason="length" if reply.is_cut_off else "stop")

    async def _reply(self, chat: Chat, sampling: Sampling) -> Reply:
        """Return a reply; without a temperature if the model refuses it."""
        messages = write_chat(chat)
        try:
            return await self._model.reply(messages, temperature=sampling.temperature)
        except ProviderFailed as failed:
            from optillm_hooks.gateway.refusals import refused_fields  # loads LiteLLM: seconds

            if "temperature" not in refused_fields(failed, sampling):
                raise
            return await self._model.reply(messages)


@dataclass(frozen=True, slots=True)
class ByJudge:
    """Right if the judge says that the reply agrees with the answer that is known."""

    judge: EndpointModel
    question: str
    answer: str

    async def __call__(self, reply: str) -> Judged:
        if not reply.strip():
            return Judged("unread")
        prompt = _comparison(self.question, self.answer, reply)
        return await _Metered(self.judge).judged(prompt, _right_or_wrong, _PLEA)


_PLEA: Final = "Give the verdict alone: RIGHT or WRONG."


async def _right_or_wrong(text: str) -> Grade | None:
    right, wrong = says("RIGHT", text), says("WRONG", text)
    if right == wrong:
        return None
    return "right" if right else "wrong"


def _comparison(question: str, answer: str, reply: str) -> Chat:
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


class ByPreference:
    """Right if the judge prefers the reply to another one, not knowing which is which.

    The order in which it sees them is drawn for each question, and is the same for all models: a
    judge that prefers a place helps none of them.
    """

    def __init__(self, judge: EndpointModel, asked: Chat, other: EndpointModel | str) -> None:
        self._judge = judge
        self._asked = asked
        self._other = other
        self._one_at_a_time = asyncio.Lock()

    async def __call__(self, reply: str) -> Judged:
        if not reply.strip():
            return Judged("unread")
        try:
            other, bill = await self._others_reply()
        except ProviderFailed as failed:
            return Judged(None, fault=f"the baseline failed: {failed}")
        place = Random(self._asked[-1].text).randrange(2)  # noqa: S311 (an order, not a secret)
        pair = [other, reply] if place else [reply, other]

        async def read(text: str) -> Grade | None:
            chosen = read_choice(last_part(text), 2)
            if chosen is None:
                return None
            return "right" if chosen == place else "wrong"

        prompt = choice_prompt(self._asked, pair, BEST)
        return await _Metered(self._judge, bill).judged(prompt, read, _CHOOSE)

    async def _others_reply(self) -> tuple[str, Bill]:
        """Return the other reply, which is made once, and what making it has cost this time."""
        async with self._one_at_a_time:
            if isinstance(self._other, str):
                return self._other, NOTHING
            reply = await self._other.reply(write_chat(self._asked))
            self._other = reply.text
            return reply.text, reply.bill


_CHOOSE: Final = "Name your choice alone: 1 or 2."
