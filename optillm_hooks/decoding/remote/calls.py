"""The calls that a remote decoding method is made of, and which models take them."""

from collections.abc import Sequence
from dataclasses import replace

from optillm_hooks.context import Context
from optillm_hooks.decoding.field import FIELD, Supports
from optillm_hooks.errors import Refused, RequestRejected
from optillm_hooks.types import Chat, Completion, Json, Message, Sampling, TokenLogprob

CONTINUES = "continue_final_message"
"""The request field by which a model goes on with the message that ends the conversation."""

MAX_ALTERNATIVES = 20
"""The most alternatives per token that OpenAI's API, and vLLM as it comes, return."""

_USUAL_REPLY = 4096
_WINDOW = 8
"""Characters within which a token is looked for behind the one before it."""


def check_local(method: str, model: str, supports: Supports, reason: str) -> None:
    """Raise `RequestRejected` if `model` is not a local one, with the reason."""
    if not supports(FIELD):
        raise RequestRejected(
            f"{method} needs a local model (optillm-local/...), which {model!r} is not: {reason}"
        )


def check_continues(method: str, model: str, supports: Supports, reason: str) -> None:
    """Raise `RequestRejected` if `model` neither is a local one nor continues a prefix."""
    if not supports(FIELD) and not supports(CONTINUES):
        raise RequestRejected(
            f"{method} needs a local model (optillm-local/...), or a deployment whose model_info "
            f"says 'optillm: {{continues_prefix: true}}', which {model!r} is not: {reason}"
        )


def check_scored(method: str, model: str, supports: Supports, reason: str) -> None:
    """Raise `RequestRejected` if `model` neither is a local one nor returns `top_logprobs`."""
    if not supports(FIELD) and not supports("top_logprobs"):
        raise RequestRejected(
            f"{method} needs a local model (optillm-local/...), or one that is known to return "
            f"top_logprobs, which {model!r} is not: {reason}"
        )


def room(sampling: Sampling, ctx: Context) -> int | None:
    """Return the most tokens of the reply, as far as anybody has said."""
    said = [most for most in (sampling.max_tokens, ctx.client.max_tokens) if most is not None]
    return min(said, default=None)


def usual_room(sampling: Sampling, ctx: Context) -> int:
    """Return the most tokens of the reply; 4,096 where nobody has said."""
    return room(sampling, ctx) or _USUAL_REPLY


def stops(sampling: Sampling, ctx: Context) -> tuple[str, ...] | None:
    """Return the stop strings of the reply."""
    return ctx.client.stop if sampling.stop is None else sampling.stop


def continuing(chat: Chat, prefix: str) -> Chat:
    """Return `chat` with the beginning of its answer."""
    return (*chat, Message("assistant", prefix))


def piece(sampling: Sampling, *, top: int | None = None, continues: bool = False) -> Sampling:
    """Return the sampling of a piece of a reply: with `top` alternatives, after a prefix."""
    fields: dict[str, Json] = dict(sampling.fields)
    if top is not None:
        fields |= {"logprobs": True, "top_logprobs": top}
    if continues:
        fields |= {"add_generation_prompt": False, CONTINUES: True}
    return replace(sampling, purpose="piece", fields=fields)


def alternatives(token: TokenLogprob) -> list[float]:
    """Return the log-probabilities of the likeliest tokens in the place of `token`."""
    return [logprob for _, logprob in token.top]


def scores(completion: Completion) -> tuple[TokenLogprob, ...]:
    """Return the log-probabilities of a completion's tokens.

    Raises:
        Refused: there is text without any.
    """
    if not completion.logprobs and (completion.text or completion.reasoning):
        raise Refused("the model does not return the log-probabilities that were asked for")
    return completion.logprobs


def token_ends(text: str, tokens: Sequence[str]) -> list[int]:
    """Return for each of `tokens` the length of `text` up to and including it.

    A token that does not stand in the text, as the half of a character or an end token, ends where
    the one before it does.
    """
    ends: list[int] = []
    end = 0
    for token in tokens:
        found = text.find(token, end, end + len(token) + _WINDOW) if token else -1
        if found >= 0:
            end = found + len(token)
        ends.append(end)
    return ends
