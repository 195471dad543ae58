"""A `Scorer` over LiteLLM's router: its rerank route, or `optillm-score`."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import litellm
from litellm.types.rerank import RerankBilledUnits, RerankResponse, RerankResponseMeta, RerankTokens
from litellm.types.utils import EmbeddingResponse

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.gateway.convert import is_amount, write_usage
from optillm_hooks.gateway.cut_off import book
from optillm_hooks.gateway.inner_call import InnerCall
from optillm_hooks.gateway.router_llm import RouterModel
from optillm_hooks.gateway.score_provider import CONVERSATION, QUESTION, SCORE_PROVIDER
from optillm_hooks.llm import Scores
from optillm_hooks.messages import write_chat
from optillm_hooks.types import Chat, Message, Sampling, Usage

_OF_QUESTION: Final = 0.5
"""The share of a model's window that the conversation may take."""

_OVERHEAD: Final = 64
"""Tokens of a window that templates and separators take, and errors of the estimates."""

_SAMPLING: Final = Sampling(purpose="judge", max_tokens=1)


class RouterScorer(RouterModel):
    """A model group that scores. Its reply counts as one token."""

    async def score(self, chat: Chat, texts: Sequence[str], /) -> Scores:
        """Return the scores of `texts`; what is too long for the model is cut in its middle."""
        asked, answers, cut = self._fitted(as_text(chat), texts)
        seen: Chat = tuple(
            each
            for answer in answers
            for each in (Message("user", asked), Message("assistant", answer))
        )
        inner = self._caller.new_call(self.model)
        async with self._on_account(seen, _SAMPLING, 1, inner) as call:
            with self._errors(inner):
                try:
                    response = await self._asked(chat, asked, answers, inner)
                except asyncio.CancelledError:
                    book(inner, lambda model: self._cut_off(model, seen))
                    raise
            call.usage = _usage(response)
            inner.payment.settle(call.usage.cost_usd)
            return Scores(_values(response, len(answers)), call.usage, cut)

    @property
    def _reranks(self) -> bool:
        return all(each.provider != SCORE_PROVIDER for each in self.facts.deployments)

    async def _asked(
        self, chat: Chat, asked: str, answers: Sequence[str], inner: InnerCall
    ) -> object:
        target: Any = litellm if self._router is None else self._router
        request = self._common(inner)
        if self._reranks:
            return await target.arerank(
                **request, query=asked, documents=list(answers), top_n=len(answers)
            )
        shown = chat if self.facts.sees_images else tuple(map(_without_images, chat))
        scored = {CONVERSATION: write_chat(shown), QUESTION: asked}
        return await target.aembedding(**request, **scored, input=list(answers))

    def _fitted(self, asked: str, texts: Sequence[str]) -> tuple[str, list[str], int]:
        """Return the conversation and the texts as they fit the model, and how many were cut."""
        window = self.facts.max_input_tokens
        if window is None:
            return asked, list(texts), 0
        room = max(1, window - _OVERHEAD)
        longest = max(map(self._count, texts))
        of_question = max(int(room * _OF_QUESTION), room - longest)
        question = _shortened(asked, self._count(asked), of_question)
        left = max(1, room - min(of_question, self._count(question)))
        fitted = [_shortened(text, self._count(text), left) for text in texts]
        cut = sum(short != text for short, text in zip(fitted, texts, strict=True))
        return question, fitted, cut

    def _count(self, text: str) -> int:
        return self.facts.count_tokens((Message("user", text),), Sampling())

    def _cut_off(self, model: str, seen: Chat) -> object:
        """Return the reply to book for a call that was cut off: its provider has read it all."""
        tokens = self.facts.count_tokens(seen, _SAMPLING)
        if not self._reranks:
            usage = write_usage(Usage(prompt_tokens=tokens))
            return EmbeddingResponse(model=model, data=[], usage=usage)
        return RerankResponse(
            results=[],
            meta=RerankResponseMeta(
                billed_units=RerankBilledUnits(search_units=1, total_tokens=tokens),
                tokens=RerankTokens(input_tokens=tokens, output_tokens=0),
            ),
        )


def as_text(chat: Chat) -> str:
    """Return a conversation as one text, for a model that compares texts.

    A single question is the text itself. Of a longer conversation each message has its role in
    front.
    """
    said = [message for message in chat if message.text.strip()]
    if len([message for message in said if message.role not in ("system", "developer")]) < 2:
        return "\n\n".join(message.text for message in said)
    return "\n\n".join(f"{message.role}: {message.text}" for message in said)


def _without_images(message: Message) -> Message:
    if not isinstance(message.content, tuple):
        return message
    return Message(message.role, message.text, message.fields)


def _shortened(text: str, tokens: int, most: int) -> str:
    """Return `text` in about `most` tokens: its beginning, and twice as much of its end."""
    if tokens <= most:
        return text
    kept = max(3, len(text) * most // tokens - 5)
    return f"{text[: kept // 3]} ... {text[-(kept - kept // 3) :]}"


def _values(response: object, count: int) -> list[float]:
    """Return the scores of a response, NaN for a text that it has none of.

    Raises:
        ProviderFailed: it has none at all.
    """
    found = dict(_found(response))
    values = [found.get(at, float("nan")) for at in range(count)]
    if not any(value == value for value in values):
        error = ProviderFailed("the reply has no scores")
        error.answered = True
        raise error
    return values


def _found(response: object) -> list[tuple[int, float]]:
    if isinstance(response, RerankResponse):
        return [
            (result["index"], float(result["relevance_score"])) for result in response.results or ()
        ]
    data: Any = getattr(response, "data", None) or ()
    return [(at, float(entry["embedding"][0])) for at, entry in enumerate(data)]


def _usage(response: object) -> Usage:
    hidden = getattr(response, "_hidden_params", None) or {}
    cost = hidden.get("response_cost") or 0.0
    return Usage(
        calls=1,
        prompt_tokens=_tokens(response),
        cost_usd=float(cost) if is_amount(cost) else 0.0,
    )


def _tokens(response: object) -> int:
    if isinstance(response, RerankResponse):
        meta = response.meta or RerankResponseMeta()
        told = (meta.get("tokens") or {}).get("input_tokens")
        billed = (meta.get("billed_units") or {}).get("total_tokens")
        tokens = told or billed or 0
    else:
        tokens = getattr(getattr(response, "usage", None), "prompt_tokens", 0) or 0
    return int(tokens) if is_amount(tokens) else 0
