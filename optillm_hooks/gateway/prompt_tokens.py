"""The estimated prompt tokens of a call: all that providers bill as its prompt."""

import json
from collections.abc import Iterator, Mapping
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


def count_tokens(model: str, chat: Chat, sampling: Sampling) -> int:
    """Return the estimated prompt tokens of a call, by LiteLLM's tokenizer for the model.

    What LiteLLM leaves out (schemas, predictions, nested descriptions of tools, thinking) counts as
    its JSON.
    """
    messages = [_readable(message) for message in chat]
    others = "\n".join([*_texts(chat), *_json_of(sampling.fields)])
    media = sum(map(_medium_tokens, chat))
    try:
        counted: int = litellm.token_counter(
            model=model,
            messages=messages,
            use_default_image_token_count=True,  # or it would fetch each image, and block
        )
        if others:
            counted += litellm.token_counter(model=model, text=others)
    except Exception:  # a part of a form that it does not know
        texts = (*(message.text for message in chat), others)
        return media + sum(len(text.encode(errors="replace")) for text in texts) // _BYTES_PER_TOKEN
    return counted + media


def _readable(message: Message) -> dict[str, Any]:
    """Return what LiteLLM's counter reads of a message."""
    content = message.content
    if isinstance(content, tuple):
        parts = [part for part in content if part.get("type") in ("text", "image_url")]
        return {"role": message.role, "content": parts}
    return {"role": message.role, "content": content}


def _texts(chat: Chat) -> Iterator[str]:
    """Yield all else in messages that is text or JSON."""
    for message in chat:
        yield from _json_of(message.fields)
        for part in message.content if isinstance(message.content, tuple) else ():
            if part.get("type") not in ("text", "image_url", *_MEDIA):
                yield _json(dict(part))


def _json_of(fields: Fields) -> Iterator[str]:
    for name, value in fields.items():
        if name not in _NOT_PROMPT and isinstance(value, Mapping | list | str) and value:
            yield value if isinstance(value, str) else _json(value)


def _json(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def _medium_tokens(message: Message) -> int:
    parts = message.content if isinstance(message.content, tuple) else ()
    return sum(
        _TOKENS_PER_MEDIUM + len(_json(dict(part))) // _CHARACTERS_PER_TOKEN
        for part in parts
        if part.get("type") in _MEDIA
    )
