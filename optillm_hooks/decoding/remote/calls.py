"""The calls of remote decoding methods, and the models that support them."""

from collections.abc import Sequence
from dataclasses import replace

from optillm_hooks.context import Context
from optillm_hooks.decoding.field import FIELD, Supports
from optillm_hooks.errors import Refused, RequestRejected
from optillm_hooks.types import Chat, Completion, Json, Message, Sampling, TokenLogprob

CONTINUES = "continue_final_message"
"""The request field that makes a model continue the last message."""

MAX_ALTERNATIVES = 20
"""Maximum of `top_logprobs` in OpenAI's API, and by default in vLLM."""

_USUAL_REPLY = 4096
_WINDOW = 8
"""Characters after a token within which the next one is searched for."""


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
            f"says 'optillm: {{continues_prefix: true}}', which {model!r} is not: {reason}"
        )


def check_scored(method: str, model: str, supports: Supports, reason: str) -> None:
    """Raise `RequestRejected` with `reason` unless `model` is local or returns `top_logprobs`."""
    if not supports(FIELD) and not supports("top_logprobs"):
        raise RequestRejected(
            f"{method} needs a local model (optillm-local/...), or one that is known to return "
            f"top_logprobs, which {model!r} is not: {reason}"
        )


def room(sampling: Sampling, ctx: Context) -> int | None:
    """Return the maximum number of tokens of the reply, or None if nobody sets one."""
    limits = [n for n in (sampling.max_tokens, ctx.client.max_tokens) if n is not None]
    return min(limits, default=None)


def usual_room(sampling: Sampling, ctx: Context) -> int:
    """Return the maximum number of tokens of the reply, 4,096 if nobody sets one."""
    return room(sampling, ctx) or _USUAL_REPLY


def stops(sampling: Sampling, ctx: Context) -> tuple[str, ...] | None:
    """Return the stop strings of the reply."""
    return ctx.client.stop if sampling.stop is None else sampling.stop


def continuing(chat: Chat, prefix: str) -> Chat:
    """Return `chat` with `prefix` as the beginning of its answer."""
    return (*chat, Message("assistant", prefix))


def piece(sampling: Sampling, *, top: int | None = None, continues: bool = False) -> Sampling:
    """Return the sampling of a piece of a reply: with `top` log-probabilities, after a prefix."""
    fields: dict[str, Json] = dict(sampling.fields)
    if top is not None:
        fields |= {"logprobs": True, "top_logprobs": top}
    if continues:
        fields |= {"add_generation_prompt": False, CONTINUES: True}
    return replace(sampling, purpose="piece", fields=fields)


def alternatives(token: TokenLogprob) -> list[float]:
    """Return the top log-probabilities in the place of `token`."""
    return [logprob for _, logprob in token.top]


def scores(completion: Completion) -> tuple[TokenLogprob, ...]:
    """Return a completion's tokens with their log-probabilities.

    Raises:
        Refused: the completion has text but no log-probabilities.
    """
    if not completion.logprobs and (completion.text or completion.reasoning):
        raise Refused("the model does not return the log-probabilities that were asked for")
    return completion.logprobs


def token_ends(text: str, tokens: Sequence[str]) -> list[int]:
    """Return for each of `tokens` the length of `text` up to and including it.

    A token that is not in the text, such as half a character or an end token, ends where the token
    before it ends.
    """
    ends: list[int] = []
    end = 0
    for token in tokens:
        found = text.find(token, end, end + len(token) + _WINDOW) if token else -1
        if found >= 0:
            end = found + len(token)
        ends.append(end)
    return ends
