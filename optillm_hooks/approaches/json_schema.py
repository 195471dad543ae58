"""JSON: answers match the request's `response_format`, whatever the model supports.

A wrapper: every reply inside it that may become the answer is checked. The provider's own
structured outputs are used where it has them; otherwise the schema is in the prompt. A reply that
can mean only one thing is put right without a call (a fence or prose around the JSON, a missing
comma, a number as a text). Any other is shown to the model with what is wrong in it, up to
`attempts` calls. Samples that stay invalid do not compete, and an answer that stays invalid is an
error. Nothing is streamed before it is known to match. A request without a JSON `response_format`
is not changed.

Good for: the form of answers, and privacy.
Worth it when: the client needs JSON and the model does not guarantee it.
Source: OptiLLM's plugin has the idea (a local model whose tokens are limited to the schema, after
Willard and Louf 2023, "Efficient Guided Generation for Large Language Models", arXiv:2307.09702).
Deviations: the answer comes from the requested model; the whole of JSON Schema counts, formats too,
not only the types of the outer fields; a reply that does not match is never passed on.
Models that reason: their reasoning is not touched, and is not checked.
Cost: no call if replies match.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from pydantic import Field

from optillm_hooks.answer_format import fault_in_schema, fitted
from optillm_hooks.answers.deltas import as_delta
from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.answers.response_format import Fitted, is_json_mode, schema_of
from optillm_hooks.context import Context
from optillm_hooks.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    EmptyCompletion,
    ProviderFailed,
    RequestRejected,
    UnusableReply,
)
from optillm_hooks.final_answer import FINAL, with_solutions
from optillm_hooks.llm import LLM, ModelFacts
from optillm_hooks.prompts import follow_up, instruct
from optillm_hooks.registry import Cost, Params, Rest, Result, wrapper
from optillm_hooks.types import Answer, Chat, Completion, Delta, Json, Sampling

A = TypeVar("A", bound=Answer)

REQUEST: Final = """\
Your answer has to be one JSON value: no words before or after it, and no code fence. It has to \
match this JSON Schema:
{schema}"""

AGAIN: Final = """\
That is not valid. {problems}
Give your whole answer again, as one JSON value that matches the JSON Schema, and nothing else."""

SHORTER: Final = """\
That was cut off at the limit of its length. Give your whole answer again, as one JSON value that \
matches the JSON Schema, but much shorter."""

CUT_OFF: Final = "it was cut off at the limit of its length; raise it (max_tokens)"

_FORMED: Final = frozenset({"answer", "solution"})
"""Purposes of the calls whose replies may be the answer."""

_MAX_SCHEMA: Final = 200_000
"""Maximum characters of a schema."""

_GRACE_S: Final = 0.4
"""Seconds after the deadline in which a reply can still be checked."""

_ANOTHER: Final = 300
"""Distance between the sample numbers of two attempts with the same prompt."""


class JsonParams(Params):
    attempts: int = Field(
        default=3,
        ge=1,
        le=5,
        description="Maximum calls for one reply, until it matches `response_format`.",
    )


@wrapper("json", JsonParams, cost=lambda _: Cost(calls=0, depth=0))
async def json_schema(chat: Chat, rest: Rest, llm: LLM, params: JsonParams, ctx: Context) -> Result:
    """Return the answer of the stages inside, as JSON that matches `response_format`.

    An answer that calls tools is returned as it is, and so is a refusal, which has no text.

    Raises:
        RequestRejected: the schema cannot be used.
        UnusableReply: no reply matches.
    """
    wanted = ctx.client.fields.get("response_format")
    if not is_json_mode(wanted):
        return await rest(chat)
    await _check_schema(wanted, ctx)
    wanted = json.loads(ctx.as_shown(json.dumps(wanted)))
    counts, before = _Counts(), ctx.best
    try:
        answer = await rest.whole(
            chat, through=lambda inner: _Formed(inner, wanted, params, ctx, counts)
        )
        if answer.tool_calls or _refuses(answer) or answer.text in counts.texts:
            return answer
        found = await _fitted(answer, wanted, ctx)
        if found.text is not None:
            return _with_text(answer, found.text)
        if not answer.empty:  # a stage has written it otherwise than the model
            chat = with_solutions(chat, [Completion(answer.text)], FINAL, ctx.rng)
        try:
            return await _Formed(llm, wanted, params, ctx, counts).complete(chat, Sampling())
        except BudgetExceeded as exc:
            raise _stopped(exc, found.problems) from exc
    except BaseException:
        ctx.best = before  # what was kept may not match
        raise
    finally:
        ctx.trace.note("json", **counts.facts())


async def _check_schema(wanted: Json, ctx: Context) -> None:
    schema = schema_of(wanted)
    try:
        fault = (
            f"it is longer than {_MAX_SCHEMA} characters"
            if len(json.dumps(schema)) > _MAX_SCHEMA
            else await fault_in_schema(wanted, ctx.deadline + _GRACE_S)
        )
    except RecursionError:
        fault = "it is nested too deep"
    if fault is not None:
        if asyncio.get_running_loop().time() >= ctx.deadline:
            raise DeadlineExceeded("the deadline passed before response_format was checked")
        raise RequestRejected(
            f"the schema of response_format cannot be used: {fault}", param="response_format"
        )


async def _fitted(answer: Answer, wanted: Json, ctx: Context) -> Fitted:
    """Return the JSON of an answer, which is checked as the client gets it."""
    shown, until = ctx.as_shown(answer.text), ctx.deadline + _GRACE_S
    found = await fitted(shown, wanted, until, whole=not answer.truncated)
    return Fitted(answer.text, []) if found.text == shown else found


def _with_text(answer: A, text: str) -> A:
    """Return `answer` with another text; the tokens of the old one say nothing about it."""
    if text == answer.text:
        return answer
    return replace(answer, text=text, logprobs=(), finish_reason="stop")


@dataclass(slots=True)
class _Counts:
    """What became of the replies that were checked."""

    matched: int = 0
    repaired: int = 0
    asked_again: int = 0
    given_up: int = 0
    texts: set[str] = field(default_factory=set[str])
    """The texts that match."""

    def facts(self) -> dict[str, int]:
        names = ("matched", "repaired", "asked_again", "given_up")
        return {name: getattr(self, name) for name in names}


class _Formed:
    """A model whose answers match a `response_format`; other calls are those of `inner`."""

    def __init__(
        self, inner: LLM, wanted: Json, params: JsonParams, ctx: Context, counts: _Counts
    ) -> None:
        self._inner = inner
        self._wanted = wanted
        self._schema = schema_of(wanted)
        self._attempts = params.attempts
        self._ctx = ctx
        self._counts = counts

    @property
    def model(self) -> str:
        return self._inner.model

    @property
    def facts(self) -> ModelFacts:
        return self._inner.facts

    async def complete(self, chat: Chat, sampling: Sampling, /) -> Completion:
        """Return a completion; one that may be the answer matches, or calls tools.

        Raises:
            UnusableReply: none of the attempts matches.
            SampleError: a call failed, or the model refuses.
        """
        if sampling.purpose not in _FORMED:
            return await self._inner.complete(chat, sampling)
        asked, problems = chat, ["it is empty"]
        for attempt in range(self._attempts):
            self._counts.asked_again += attempt > 0
            try:
                [reply] = await self._ask(asked, sampling, attempt)
            except EmptyCompletion as exc:
                if _refuses(exc.empty_reply):
                    raise
                continue
            except ProviderFailed as exc:
                if not exc.answered:  # else LiteLLM may have validated the reply, and refused it
                    raise
                problems = ["it cannot be read"]
                continue
            except BudgetExceeded as exc:
                if attempt == 0:
                    raise
                raise _stopped(exc, problems) from exc
            if reply.tool_calls:
                return reply
            found = await self._checked(reply, sampling)
            if isinstance(found, Completion):
                return found
            problems = [CUT_OFF] if reply.truncated else found
            said = without_reasoning(reply.text)
            plea = SHORTER if reply.truncated else AGAIN.format(problems=_listed(problems))
            asked = follow_up(chat, said, plea) if said.strip() else chat
        self._counts.given_up += 1
        raise UnusableReply(
            f"the model's reply does not match response_format after {self._attempts} attempts: "
            + "; ".join(problems)
        )

    async def complete_n(self, chat: Chat, sampling: Sampling, n: int, /) -> Sequence[Completion]:
        """Return those of `n` completions that match; if none does, one that was asked for again.

        Raises:
            SampleError: as in `complete`.
        """
        if sampling.purpose not in _FORMED:
            return await self._inner.complete_n(chat, sampling, n)
        replies = await self._ask(chat, sampling, n=n)
        checked = [
            reply if reply.tool_calls else await self._checked(reply, sampling) for reply in replies
        ]
        matching = [reply for reply in checked if isinstance(reply, Completion)]
        if matching:
            return matching
        again = replace(sampling, sample=sampling.sample + _ANOTHER)
        return [await self.complete(chat, again)]

    async def stream(self, chat: Chat, sampling: Sampling, /) -> AsyncGenerator[Delta, None]:
        """Yield one completion in one piece: nothing of it can be shown before it is checked."""
        reply = await self.complete(chat, sampling)
        yield replace(as_delta(reply), usage=reply.usage, facts=reply.facts)

    async def _checked(self, reply: Completion, sampling: Sampling) -> Completion | list[str]:
        """Return the reply as it matches, or what is wrong in it.

        What was kept as the best so far is replaced by a reply that matches.
        """
        ctx = self._ctx
        found = await _fitted(reply, self._wanted, ctx)
        if ctx.best is not None and reply.text.startswith(ctx.best.text):
            ctx.best = None
        if found.text is None:
            return found.problems
        self._counts.matched += 1
        self._counts.texts.add(found.text)
        self._counts.repaired += found.text != reply.text
        matching = _with_text(reply, found.text)
        ctx.keep_reply(matching, sampling.purpose, self.facts)
        return matching

    async def _ask(
        self, chat: Chat, sampling: Sampling, attempt: int = 0, n: int = 1
    ) -> Sequence[Completion]:
        """Return the replies to one call.

        The schema is in the prompt if the model has no structured outputs, or did not keep to it. A
        host that turns out to refuse them is asked without.
        """
        sampling = replace(sampling, sample=sampling.sample + attempt * _ANOTHER)
        told = instruct(chat, REQUEST.format(schema=json.dumps(self._schema)))
        if not self._takes(self._wanted):
            return await self._send(told, self._without_schema(sampling), n)
        try:
            return await self._send(told if attempt else chat, sampling, n)
        except ProviderFailed as exc:
            if "response_format" not in exc.refused:
                raise
            refused = exc.refused
        replies = await self._send(told, self._without_schema(sampling), n)
        self.facts.remember(refused)
        return replies

    async def _send(self, chat: Chat, sampling: Sampling, n: int) -> Sequence[Completion]:
        if n > 1:
            return await self._inner.complete_n(chat, sampling, n)
        return [await self._inner.complete(chat, sampling)]

    def _takes(self, response_format: Json) -> bool:
        """Return whether the model is known to accept a `response_format`."""
        sampling = Sampling(fields={"response_format": response_format})
        return self.facts.supports("response_format") and self.facts.takes(sampling)

    def _without_schema(self, sampling: Sampling) -> Sampling:
        """Return `sampling` with JSON mode instead of the client's schema, or with nothing."""
        wants_object = isinstance(self._schema, dict) and self._schema.get("type") == "object"
        mode: Json = {"type": "json_object"}
        usable = wants_object and self._wanted != mode and self._takes(mode)
        fields = {**sampling.fields, "response_format": mode if usable else None}
        return replace(sampling, fields=fields)


def _refuses(reply: Answer | None) -> bool:
    """Return whether a reply is a refusal without content, which the user is to see."""
    if reply is None or not reply.empty:
        return False
    specific = reply.fields.get("provider_specific_fields")
    told = specific.get("refusal") if isinstance(specific, dict) else None
    return bool(told or reply.fields.get("refusal")) or reply.finish_reason == "content_filter"


def _stopped(exc: BudgetExceeded, problems: Sequence[str]) -> BudgetExceeded:
    """Return the error of a limit that leaves no further attempt, with what is wrong in the last.

    One that tells that already is returned as it is.
    """
    told = "the model's reply does not match response_format"
    return exc if told in str(exc) else BudgetExceeded(f"{exc}, and {told}: {'; '.join(problems)}")


def _listed(problems: Sequence[str]) -> str:
    return "What is wrong:\n" + "\n".join(f"- {problem}" for problem in problems)
