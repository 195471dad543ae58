"""Helpers for the calls of remote decoding methods, and checks that a model supports them."""

from collections.abc import Sequence
from dataclasses import replace

from optillm_hooks.context import Context
from optillm_hooks.decoding.field import FIELD, Supports
from optillm_hooks.errors import Refused, RequestRejected
from optillm_hooks.types import Chat, Completion, Json, Message, Sampling, TokenLogprob

CONTINUES = "continue_final_message"
"""The request field that makes a server continue the last message."""

MAX_ALTERNATIVES = 20
"""Maximum `top_logprobs` in OpenAI's API, and by default in vLLM."""

_DEFAULT_REPLY = 4096
_WINDOW = 8
"""Maximum number of characters between two tokens when they are located in the text."""


def check_local(method: str, model: str, supports: Supports, reason: str) -> None:
    """Raise `RequestRejected` with `reason` unless `model` is local."""
    if not supports(FIELD):
        raise RequestRejected(
            f"{method} needs a local model (optillm-local/...), which {model!r} is not: {reason}"
        )


def check_continues(method: str, model: str, supports: Supports, reason: str) -> None:
    """Raise `RequestRejected` with `reason` unless `model` is local or continues a prefix."""
    if not supports(FIELD) and not supports(CONTINUES):
        raise RequestRejected(
            f"{method} needs a local model (optillm-local/...), or a deployment whose model_info "
            f"has 'optillm: {{continues_prefix: true}}', which {model!r} is not: {reason}"
        )


def check_top_logprobs(method: str, model: str, supports: Supports, reason: str) -> None:
    """Raise `RequestRejected` with `reason` unless `model` is local or returns `top_logprobs`."""
    if not supports(FIELD) and not supports("top_logprobs"):
        raise RequestRejected(
            f"{method} needs a local model (optillm-local/...), or one that is known to return "
            f"top_logprobs, which {model!r} is not: {reason}"
        )


def reply_limit_or_default(sampling: Sampling, ctx: Context) -> int:
    """Return the maximum number of tokens of the reply; by default 4,096."""
    return ctx.reply_limit(sampling) or _DEFAULT_REPLY


def stop_strings(sampling: Sampling, ctx: Context) -> tuple[str, ...] | None:
    """Return the stop strings of the reply."""
    return ctx.client.stop if sampling.stop is None else sampling.stop


def with_prefix(chat: Chat, prefix: str) -> Chat:
    """Return `chat` with `prefix` as the beginning of the assistant's reply."""
    return (*chat, Message("assistant", prefix))


def piece_sampling(
    sampling: Sampling, *, top: int | None = None, continues: bool = False
) -> Sampling:
    """Return the sampling of one piece of a reply.

    `top`: number of top log-probabilities. `continues`: the piece continues the last message.
    """
    fields: dict[str, Json] = dict(sampling.fields)
    if top is not None:
        fields |= {"logprobs": True, "top_logprobs": top}
    if continues:
        fields |= {"add_generation_prompt": False, CONTINUES: True}
    return replace(sampling, purpose="piece", fields=fields)


def top_logprobs(token: TokenLogprob) -> list[float]:
    """Return the top log-probabilities at the position of `token`."""
    return [logprob for _, logprob in token.top]


def token_logprobs(completion: Completion) -> tuple[TokenLogprob, ...]:
    """Return a completion's tokens with their log-probabilities.

    Raises:
        Refused: the completion has text but no log-probabilities.
    """
    if not completion.logprobs and (completion.text or completion.reasoning):
        raise Refused("the model did not return the log-probabilities that were requested")
    return completion.logprobs


def token_ends(text: str, tokens: Sequence[str]) -> list[int]:
    """Return the end of each token: the length of `text` up to and including it.

    A token that is not in the text, such as part of a character or an end token, ends where the
    previous token ends.
    """
    ends: list[int] = []
    end = 0
    for token in tokens:
        found = text.find(token, end, end + len(token) + _WINDOW) if token else -1
        if found >= 0:
            end = found + len(token)
        ends.append(end)
    return ends
