"""Asks hosts for replies, and reads them.

They differ: some give a text in parts, others leave out the usage. A host may also send anything:
figures that cannot be are not believed.
"""

import asyncio
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import httpx
import openai
from openai import AsyncOpenAI
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from optillm_hooks.evaluation.bills import Bill

Messages = Sequence[Mapping[str, Any]]

_MOST: Final = 10**12
"""Tokens, calls and dollars that one reply can have cost."""

_Count = Annotated[int, Field(ge=0, le=_MOST)]
_CUT_OFF: Final = frozenset({"length", "content_filter"})
_NEWER: Final[Mapping[str, str]] = {"max_tokens": "max_completion_tokens"}
_CODE: Final = re.compile(r"[\w.:/-]{1,80}")
"""A code of an error. What a host sends in its place may be anything."""

_WRONG: Final = frozenset({400, 403, 404, 422})
"""What a request that is made again gets again: the message says what to change."""

_LONGEST_MESSAGE: Final = 300


class _Note(BaseModel):
    model_config = ConfigDict(frozen=True, defer_build=True, extra="allow")

    name: str = ""


class Report(BaseModel):
    """Our report, of a plain model the default."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    approach: str | None = None
    calls: _Count = 1
    depth: _Count = 1
    cost_usd: float | None = Field(default=None, ge=0, le=_MOST)
    degraded: tuple[str, ...] = ()
    notes: tuple[_Note, ...] = ()

    def note(self, name: str) -> Mapping[str, Any] | None:
        """Return the fields of the first note of that name."""
        found = next((note for note in self.notes if note.name == name), None)
        return None if found is None else found.model_extra


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, defer_build=True)

    type: str = ""
    text: str | None = None


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, defer_build=True)

    content: str | tuple[_Part, ...] | None = None


class _Choice(BaseModel):
    model_config = ConfigDict(frozen=True, defer_build=True)

    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
    model_config = ConfigDict(frozen=True, defer_build=True)

    choices: tuple[_Choice, ...]
    usage: Mapping[str, Any] | None = None
    optillm: Report = Report()

    def text(self) -> str:
        content = self.choices[0].message.content if self.choices else None
        if isinstance(content, tuple):
            return "".join(part.text or "" for part in content if part.type == "text")
        return content or ""

    def tokens(self, name: str) -> int:
        found = (self.usage or {}).get(name)
        return found if isinstance(found, int) and 0 <= found <= _MOST else 0


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's reply."""

    text: str
    """Of the answer; "" if there is none."""

    is_cut_off: bool
    bill: Bill
    """With all calls that were made for it."""

    report: Report
    seconds: float
    """From the request that was answered to the end of the reply."""


class FieldNames:
    """The names by which models take fields, learned from what they refuse.

    OpenAI's reasoning models take the limit by its newer name only, older hosts by the other one.
    """

    def __init__(self) -> None:
        self._renamed = set[str]()

    def named(self, model: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields by the names that the model takes."""
        return _renamed(fields) if model in self._renamed else dict(fields)

    def learn(self, model: str, sent: Mapping[str, Any], failed: openai.OpenAIError) -> bool:
        """Return whether a model refused its fields for their names, and takes the newer ones."""
        if sent == _renamed(sent) or not any(name in str(failed) for name in _NEWER.values()):
            return False
        self._renamed.add(model)
        return True


def _renamed(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {_NEWER.get(name, name): value for name, value in fields.items()}


async def ask_host(
    client: AsyncOpenAI,
    names: FieldNames,
    model: str,
    messages: Messages,
    fields: Mapping[str, Any],
) -> Reply:
    """Return the reply of a model; `fields` are further ones of the request.

    Fields that are refused for their names are sent again, by those that the model takes. The
    client's timeout is that of the whole reply here, not of each piece of it.

    Raises:
        OpenAIError: there is none.
    """
    sent = names.named(model, fields)
    try:
        return await _asked(client, model, messages, sent)
    except openai.OpenAIError as exc:
        if not names.learn(model, sent, exc):
            raise
    return await _asked(client, model, messages, names.named(model, fields))


async def _asked(
    client: AsyncOpenAI, model: str, messages: Messages, fields: Mapping[str, Any]
) -> Reply:
    begun = time.perf_counter()
    whole_s = client.timeout if isinstance(client.timeout, float) else math.inf
    try:
        async with asyncio.timeout((1 + client.max_retries) * whole_s):
            response = await client.chat.completions.with_raw_response.create(
                model=model,
                messages=messages,  # type: ignore[arg-type]
                extra_body=fields,
            )
    except TimeoutError:
        raise openai.APITimeoutError(httpx.Request("POST", client.base_url)) from None
    return _reply_in(response.http_response, time.perf_counter() - begun)


def _reply_in(response: httpx.Response, seconds: float) -> Reply:
    """Return the reply that a host's response has.

    The dollars are those of our report, or of LiteLLM's header of a plain response.

    Raises:
        APIResponseValidationError: it has none, as the page of a host in between.
    """
    try:
        found = _Completion.model_validate_json(response.content)
    except ValidationError:
        raise openai.APIResponseValidationError(response, None) from None
    cost = found.optillm.cost_usd
    if cost is None:
        cost = _number(response.headers.get("x-litellm-response-cost"))
    return Reply(
        found.text(),
        bool(found.choices) and found.choices[0].finish_reason in _CUT_OFF,
        Bill(found.tokens("prompt_tokens"), found.tokens("completion_tokens"), cost),
        found.optillm,
        seconds,
    )


_FAILURES: Final[Mapping[type[openai.OpenAIError], str]] = {
    openai.APIConnectionError: "the endpoint cannot be reached",
    openai.APITimeoutError: "no reply within the timeout",
    openai.APIResponseValidationError: "the response is no chat completion",
}


def failure(failed: openai.OpenAIError) -> str:
    """Return an error: its status, its code, and of a request that is wrong the message."""
    if not isinstance(failed, openai.APIStatusError):
        return _FAILURES.get(type(failed), type(failed).__name__)
    status, code = str(failed.status_code), str(failed.code or failed.type or "")
    known = f"{status} {code}" if code != status and _CODE.fullmatch(code) else status
    told = failed.body.get("message") if isinstance(failed.body, dict) else None
    if failed.status_code not in _WRONG or not isinstance(told, str) or not told.strip():
        return known
    return f"{known}: {told.strip().splitlines()[0][:_LONGEST_MESSAGE]}"


def _number(said: str | None) -> float | None:
    try:
        cost = math.nan if said is None else float(said)
    except ValueError:
        return None
    return cost if 0 <= cost <= _MOST else None
