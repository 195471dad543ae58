"""The estimated prompt tokens of a call: all that providers bill as its prompt."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from random import SystemRandom
from typing import Any, Final

import litellm

from optillm_hooks.types import Chat, Fields, Json, Message, Sampling

_NOT_PROMPT: Final = frozenset(
    {
        "extra_headers", "logit_bias", "modalities", "prompt_cache_key", "reasoning_effort",
        "safety_identifier", "service_tier", "stop", "thinking", "user", "verbosity",
    }
)  # fmt: skip
"""Fields of a request that no model reads. All others that hold text or objects count."""

_MEDIA: Final = frozenset({"audio_url", "file", "input_audio", "video_url"})
"""Content parts with data that is no text. LiteLLM has a number of its own for images."""

_TOKENS_PER_MEDIUM: Final = 250
_CHARACTERS_PER_TOKEN: Final = 16
"""A rough estimate for base64: of recordings there are more to a token, of PDF files fewer."""

_BYTES_PER_TOKEN: Final = 3
"""An estimate for text that LiteLLM cannot count; English has about four."""

_OF_CALL: Final = 3
"""The tokens of each call that LiteLLM adds to those of its messages."""

_MAX_EXACT: Final = 400_000
"""Maximum length of a text that is counted as a whole, which takes tens of milliseconds."""

_PARTS: Final = 64
_random: Final = SystemRandom()


class PromptTokens:
    """Counts the prompt tokens of one request's calls to a model; each text is counted once.

    The calls of a plan share most of their prompts. Messages and fields are recognised by identity:
    a plan passes them on as they are.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._known: dict[int, tuple[object, int]] = {}

    def count(self, chat: Chat, sampling: Sampling) -> int:
        """Return the estimated prompt tokens of a call, by LiteLLM's tokenizer for the model.

        What LiteLLM leaves out (schemas, predictions, nested descriptions of tools, thinking)
        counts as its JSON.
        """
        new = [message for message in chat if id(message) not in self._known]
        if new:
            self._share(new, _message_tokens(self._model, new))
        values = list(_of_prompt(sampling.fields))
        for value in values:
            if id(value) not in self._known:
                self._known[id(value)] = value, _text_tokens(self._model, _json(value))
        return _OF_CALL + sum(self._known[id(part)][1] for part in (*chat, *values))

    def _share(self, messages: Sequence[Message], tokens: int) -> None:
        """Remember the tokens of `messages`, which were counted together: each one's share."""
        lengths = [1 + len(message.text) for message in messages]
        total = sum(lengths)
        ends = [tokens * end // total for end in accumulate(lengths, initial=0)]
        for message, (start, end) in zip(messages, pairwise(ends), strict=True):
            self._known[id(message)] = message, end - start


def _message_tokens(model: str, messages: Sequence[Message]) -> int:
    """Return the tokens of `messages`, without those that every call has."""
    long = [message.text for message in messages if len(message.text) > _MAX_EXACT]
    readable = [_readable(m) for m in messages if len(m.text) <= _MAX_EXACT]
    others = "\n".join(_texts(messages))
    tokens = sum(map(_medium_tokens, messages))
    tokens += sum(_text_tokens(model, text) for text in (*long, others))
    try:
        counted: int = litellm.token_counter(
            model=model,
            messages=readable,
            use_default_image_token_count=True,  # or it would fetch each image, and block
        )
    except Exception:  # a part of a form that it does not know
        texts = [message.text for message in messages]
        return tokens + sum(map(_guessed, texts))
    return tokens + counted - _OF_CALL


def _text_tokens(model: str, text: str) -> int:
    """Return the tokens of `text`; if it is long, an estimate by parts of it.

    The parts are drawn: nobody can write a text that has few tokens just where they are counted.
    """
    if not text:
        return 0
    counted = text
    if len(text) > _MAX_EXACT:
        size, stride = _MAX_EXACT // _PARTS, len(text) / _PARTS
        starts = [int(stride * n + _random.random() * (stride - size)) for n in range(_PARTS)]
        counted = "".join(text[start : start + size] for start in starts)
    try:
        tokens: int = litellm.token_counter(model=model, text=counted)
    except Exception:  # a tokenizer that cannot be loaded, say
        return _guessed(text)
    return tokens * len(text) // len(counted)


def _guessed(text: str) -> int:
    return len(text.encode(errors="replace")) // _BYTES_PER_TOKEN


def _readable(message: Message) -> dict[str, Any]:
    """Return what LiteLLM's counter reads of a message."""
    content = message.content
    if isinstance(content, tuple):
        parts = [part for part in content if part.get("type") in ("text", "image_url")]
        return {"role": message.role, "content": parts}
    return {"role": message.role, "content": content}


def _texts(messages: Sequence[Message]) -> Iterator[str]:
    """Yield all else in messages that is text or JSON."""
    for message in messages:
        yield from map(_json, _of_prompt(message.fields))
        for part in message.content if isinstance(message.content, tuple) else ():
            if part.get("type") not in ("text", "image_url", *_MEDIA):
                yield _json(dict(part))


def _of_prompt(fields: Fields) -> Iterator[Mapping[str, Json] | list[Json] | str]:
    for name, value in fields.items():
        if name not in _NOT_PROMPT and isinstance(value, Mapping | list | str) and value:
            yield value


def _json(value: object) -> str:
    return (
        value
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    )


def _medium_tokens(message: Message) -> int:
    parts = message.content if isinstance(message.content, tuple) else ()
    return sum(
        _TOKENS_PER_MEDIUM + len(_json(dict(part))) // _CHARACTERS_PER_TOKEN
        for part in parts
        if part.get("type") in _MEDIA
    )
