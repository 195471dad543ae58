"""The client that a plugin gets: OpenAI's, as far as plugins use it, over the request's models.

It blocks the plugin's thread, not the event loop. Every call is paid for from the request's budget,
and errors are OpenAI's own exceptions.
"""

import asyncio
import queue
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, cast, get_args

from optillm_hooks.context import Context
from optillm_hooks.errors import Refused, SampleError
from optillm_hooks.fanout import LoopOfThread, sample_many
from optillm_hooks.llm import LLM
from optillm_hooks.types import (
    Answer,
    Chat,
    Completion,
    Delta,
    Json,
    Message,
    Role,
    Sampling,
    Usage,
)

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

_MAX_N: Final = 128
_ROLES: Final = frozenset(get_args(Role))
_LIMITS: Final = ("max_completion_tokens", "max_tokens")
_OF_CLIENT: Final = frozenset(
    {"model", "messages", "n", "stream", "stream_options", "timeout", "extra_body", *_LIMITS}
    | {"extra_headers", "extra_query", "temperature", "top_p", "stop", "seed"}
)
"""Arguments of `create` that are not sent as other fields of the call."""


class Models:
    """The models that a plugin may call. It remembers how its calls ended."""

    def __init__(self, base: LLM, others: Mapping[str, LLM], query: str, ctx: Context) -> None:
        self._llms = {**others, base.model: base}
        self._query = query
        self._ctx = ctx
        self._answered = False
        self._errors: list[SampleError] = []

    @property
    def names(self) -> list[str]:
        return list(self._llms)

    @property
    def failure(self) -> SampleError | None:
        """The first error, if calls were made and none brought anything."""
        return self._errors[0] if self._errors and not self._answered else None

    async def complete(self, call: "_Call") -> Sequence[Completion]:
        """Return the choices of a plugin's call, one to `n` of them."""
        try:
            async with asyncio.timeout(call.timeout):
                made = await self._made(call)
        except SampleError as exc:
            self._errors.append(exc)
            raise
        self._keep(call.chat, made[0])
        return made

    async def _made(self, call: "_Call") -> Sequence[Completion]:
        llm = self._llm(call.model)
        if call.n == 1:
            return [await llm.complete(call.chat, call.sampling)]
        return await sample_many(llm, call.chat, call.sampling, self._ctx, n=call.n)

    async def stream(self, call: "_Call", put: Callable[[Delta], None]) -> None:
        """Give `put` the pieces of a reply."""
        text, reason = "", None
        try:
            async with asyncio.timeout(call.timeout):
                llm = self._llm(call.model)
                async with aclosing(llm.stream(call.chat, call.sampling)) as pieces:
                    async for delta in pieces:
                        text, reason = text + delta.text, delta.finish_reason or reason
                        put(delta)
        except SampleError as exc:
            self._errors.append(exc)
            raise
        self._keep(call.chat, Answer(text, reason or "stop"))

    def _llm(self, model: str) -> LLM:
        if model not in self._llms:
            raise Refused(
                f"the plugin may not call {model!r}, only {', '.join(self.names)}: name it in the "
                "plugin's parameter models"
            )
        return self._llms[model]

    def _keep(self, chat: Chat, reply: Answer) -> None:
        """Keep a reply to the user's own question: it is an answer, if the request has to stop."""
        self._answered = True
        if chat[-1].role == "user" and chat[-1].text == self._query:
            facts = next(iter(self._llms.values())).facts
            self._ctx.keep(self._ctx.bounded(reply, facts))


class _Call:
    """The arguments of a plugin's call, read."""

    def __init__(self, given: Mapping[str, Any], default_timeout: float | None) -> None:
        given = {k: v for k, v in given.items() if v is not None and not _is_not_given(v)}
        self.model = str(given.get("model", ""))
        self.chat = _read_messages(given.get("messages"))
        self.n = given.get("n", 1)
        if type(self.n) is not int or not 1 <= self.n <= _MAX_N:
            raise Refused(f"n must be a whole number from 1 to {_MAX_N}")
        self.timeout = _seconds(given.get("timeout", default_timeout))
        stop = given.get("stop")
        extra = given.get("extra_body")
        nested = extra if isinstance(extra, Mapping) else {}
        fields = {k: v for k, v in {**nested, **given}.items() if k not in _OF_CLIENT}
        if fields.get("tools"):
            fields.setdefault("tool_choice", "auto")  # or a judge's call would forbid them
        self.sampling = Sampling(
            purpose="judge",  # it gets nothing of the user's request: the plugin says everything
            temperature=_number(given, "temperature", float),
            top_p=_number(given, "top_p", float),
            seed=_number(given, "seed", int),
            max_tokens=_number(given, next((n for n in _LIMITS if n in given), ""), int),
            stop=None if stop is None else (stop,) if isinstance(stop, str) else tuple(stop),
            fields=fields,
        )


def _is_not_given(value: object) -> bool:
    return type(value).__name__ in ("NotGiven", "Omit")


def _number(given: Mapping[str, Any], name: str, kind: type) -> Any:
    value = given.get(name)
    if value is None:
        return None
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        raise Refused(f"{name} must be a number") from None


def _seconds(timeout: object) -> float | None:
    read = getattr(timeout, "read", timeout)
    return float(read) if isinstance(read, int | float) else None


def _read_messages(messages: object) -> Chat:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise Refused("messages must be a list with at least one message")
    chat = tuple(map(_read_message, messages))
    # Plugins write a system message of an empty prompt too, which some providers refuse.
    told = tuple(m for m in chat if m.content or m.role not in ("system", "developer"))
    return told or chat


def _read_message(message: Any) -> Message:
    given = message.model_dump(exclude_none=True) if hasattr(message, "model_dump") else message
    if not isinstance(given, Mapping) or given.get("role") not in _ROLES:
        raise Refused(f"a message must be an object with a role of {', '.join(sorted(_ROLES))}")
    content = given.get("content")
    if content is not None and not isinstance(content, str):
        if not isinstance(content, Sequence) or not all(isinstance(p, Mapping) for p in content):
            raise Refused("a message's content must be a string or a list of content parts")
        content = tuple(content)
    fields = {k: v for k, v in given.items() if k not in ("role", "content")}
    return Message(cast(Role, given["role"]), content, cast(Mapping[str, Json], fields))


class Client:
    """OpenAI's client, as far as plugins use it; it may be used from several threads."""

    def __init__(self, models: Models, loop: LoopOfThread, timeout: float | None = None) -> None:
        self._models = models
        self._loop = loop
        self._timeout = timeout
        self.chat = SimpleNamespace(completions=_Completions(models, loop, timeout))
        self.models = _ModelList(models.names)

    def with_options(self, *, timeout: object = None, **_: object) -> "Client":
        """Return a client with another timeout. Retries are the proxy's, not the client's."""
        return Client(self._models, self._loop, _seconds(timeout) or self._timeout)

    copy = with_options

    def close(self) -> None:
        """Do nothing, as the client has no connections."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"the client of a plugin has no {name!r}, only chat.completions, models and "
            "with_options"
        )


class _ModelList:
    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def list(self, **_: object) -> Any:
        """Return OpenAI's list of the models that may be called."""
        from openai.pagination import SyncPage

        data = [self._model(name) for name in self._names]
        return SyncPage.construct(data=data, object="list")

    def retrieve(self, model: str, **_: object) -> Any:
        """Return one model of the list."""
        if model not in self._names:
            raise _as_openai(Refused(f"no model {model!r}"), status=404)
        return self._model(model)

    def _model(self, name: str) -> Any:
        from openai.types import Model

        return Model(id=name, created=0, object="model", owned_by="optillm")


class _Completions:
    def __init__(self, models: Models, loop: LoopOfThread, timeout: float | None) -> None:
        self._models = models
        self._loop = loop
        self._timeout = timeout

    def create(self, **given: Any) -> "ChatCompletion | _Stream":
        """Return a completion, or with `stream=True` an iterator of its chunks.

        Raises:
            openai.APIError: the call failed.
            RequestEnded: the request of the user has ended.
        """
        try:
            call = _Call(given, self._timeout)
            if given.get("stream"):
                return _Stream(call, self._models, self._loop)
            made = self._loop.run(lambda: self._models.complete(call))
        except (SampleError, TimeoutError) as exc:
            raise _as_openai(exc) from exc
        return _completion(call.model, made)


class _Stream:
    """The chunks of a reply, as OpenAI's `Stream`."""

    def __init__(self, call: _Call, models: Models, loop: LoopOfThread) -> None:
        self._model = call.model
        self._loop = loop
        self._pieces: queue.SimpleQueue[Delta | None] = queue.SimpleQueue()
        self._future = loop.start(lambda: models.stream(call, self._pieces.put))
        self._future.add_done_callback(self._end)
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._chunks = self._received()

    def _end(self, _: Future[None]) -> None:
        self._pieces.put(None)

    def _received(self) -> Iterator["ChatCompletionChunk"]:
        usage: Usage | None = None
        while (delta := self._pieces.get()) is not None:
            usage = delta.usage or usage
            yield _chunk(self._id, self._model, delta)
        try:
            self._loop.result(self._future)
        except (SampleError, TimeoutError) as exc:
            raise _as_openai(exc) from exc
        if usage is not None:
            yield _chunk(self._id, self._model, None, usage)

    def __iter__(self) -> Iterator["ChatCompletionChunk"]:
        return self._chunks

    def __next__(self) -> "ChatCompletionChunk":
        return next(self._chunks)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the call if it is still running."""
        self._future.cancel()


def _completion(model: str, made: Sequence[Completion]) -> "ChatCompletion":
    from openai.types.chat import ChatCompletion

    usage = sum((each.usage for each in made), Usage())
    return ChatCompletion.model_validate(
        {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [
                {
                    "index": index,
                    "finish_reason": each.finish_reason,
                    "logprobs": _logprobs(each),
                    "message": _message(each),
                }
                for index, each in enumerate(made)
            ],
            "usage": _usage(usage),
        }
    )


def _message(reply: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {**reply.fields, "role": "assistant", "content": reply.text or None}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in reply.tool_calls
        ]
    return message


def _logprobs(reply: Answer | Delta) -> dict[str, Any] | None:
    if not reply.logprobs:
        return None

    def one(token: str, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode(errors="replace"))}

    return {
        "content": [
            {**one(each.token, each.logprob), "top_logprobs": [one(*top) for top in each.top]}
            for each in reply.logprobs
        ]
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _chunk(
    stream_id: str, model: str, delta: Delta | None, usage: Usage | None = None
) -> "ChatCompletionChunk":
    from openai.types.chat import ChatCompletionChunk

    choices: list[dict[str, Any]] = []
    if delta is not None:
        piece: dict[str, Any] = {"role": "assistant", "content": delta.text}
        if delta.reasoning:
            piece["reasoning_content"] = delta.reasoning
        if delta.tool_calls:
            piece["tool_calls"] = list(delta.tool_calls)
        choices = [
            {
                "index": 0,
                "delta": piece,
                "finish_reason": delta.finish_reason,
                "logprobs": _logprobs(delta),
            }
        ]
    return ChatCompletionChunk.model_validate(
        {
            "id": stream_id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
            "choices": choices,
            "usage": None if usage is None else _usage(usage),
        }
    )


def _as_openai(error: SampleError | TimeoutError, status: int | None = None) -> "openai.APIError":
    """Return `error` as the exception that OpenAI's client raises for it."""
    import httpx
    import openai

    request = httpx.Request("POST", "http://optillm/v1/chat/completions")
    if isinstance(error, TimeoutError):
        return openai.APITimeoutError(request)
    status = status or error.status
    kinds: dict[int, type[openai.APIStatusError]] = {
        400: openai.BadRequestError,
        401: openai.AuthenticationError,
        403: openai.PermissionDeniedError,
        404: openai.NotFoundError,
        409: openai.ConflictError,
        422: openai.UnprocessableEntityError,
        429: openai.RateLimitError,
    }
    kind = kinds.get(status, openai.InternalServerError if status >= 500 else openai.APIStatusError)
    body = {"message": str(error), "code": error.code, "type": None, "param": None}
    return kind(str(error), response=httpx.Response(status, request=request), body=body)
