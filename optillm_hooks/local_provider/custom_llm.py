"""The LiteLLM custom provider `optillm-local`: an adapter between LiteLLM and the engine."""

import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import litellm
from litellm import CustomLLM
from litellm.types.utils import (
    ChatCompletionTokenLogprob,
    ChoiceLogprobs,
    Choices,
    Delta,
    Message,
    ModelResponse,
    ModelResponseStream,
    StreamingChoices,
    TopLogprob,
    Usage,
)

from optillm_hooks.errors import OptiLLMError, RequestRejected
from optillm_hooks.local_provider import models
from optillm_hooks.local_provider.engine import Engine
from optillm_hooks.local_provider.engine_request import (
    Choice,
    EngineRequest,
    Finished,
    Piece,
    PromptTooLong,
    TokenLogprob,
    UnknownModel,
    check_adapter,
)
from optillm_hooks.local_provider.eviction import make_room
from optillm_hooks.local_provider.request import parse_request
from optillm_hooks.types import Fields, ToolCall

if TYPE_CHECKING:
    from optillm_hooks.local_provider.batch import Batch

PROVIDER = "optillm-local"

_MESSAGES_ROUTE = "anthropic_messages"
"""LiteLLM's call type."""


class LocalProvider(CustomLLM):
    """Serves local models in this process, with one engine per model, created on first use."""

    def __init__(self) -> None:
        super().__init__()
        self._engines: dict[tuple[str, str], Engine] = {}
        self._lock = threading.Lock()
        self._loading = threading.Lock()

    def engine(
        self,
        model: str,
        litellm_params: Mapping[str, Any] | None = None,
        adapter: str | None = None,
    ) -> Engine:
        """Return the engine of a model, which all its LoRA adapters share.

        The model is described in the deployment's `model_info.optillm_local`, or built in.
        LiteLLM's router sets `model_info` in each request, overwriting anything that a client sent.

        Raises:
            UnknownModel: no such model is configured. Nothing is loaded.
            RequestRejected: it has no such adapter. Nothing is loaded.
        """
        info = (litellm_params or {}).get("model_info") or {}
        name = model.partition("+")[0]
        spec = models.find(name, info.get("optillm_local"))
        check_adapter(adapter, spec.adapters)
        with self._lock:
            key = (name, spec.model_dump_json())
            if key not in self._engines:
                load = partial(self._load, key, spec)
                self._engines[key] = Engine(name, load, unload_after_s=spec.unload_after_s)
            return self._engines[key]

    def _load(self, key: tuple[str, str], spec: models.ModelSpec) -> "Batch":
        """Load the model of `spec`, evicting idle models from its device if necessary."""
        with self._loading:
            device = models.device_of(spec)
            with self._lock:
                others = [
                    engine
                    for (name, text), engine in self._engines.items()
                    if (name, text) != key
                    and models.device_of(models.ModelSpec.model_validate_json(text)) == device
                ]
            limit = models.memory_limit(spec, sum(other.bytes for other in others))
            make_room(key[0], models.weight_bytes(spec), limit, others)
            return models.start(spec)

    def completion(
        self, model: str, messages: list[dict[str, Any]], *_args: Any, **kwargs: Any
    ) -> ModelResponse:
        """Return the complete response. Blocks the calling thread."""
        with _errors_of(model):
            engine, request = self._engine_and_request(model, messages, **kwargs)
            answer = _Answer(model, request)
            with closing(engine.stream_sync(request)) as events:
                for event in events:
                    answer.add(event)
        return answer.response()

    async def acompletion(
        self, model: str, messages: list[dict[str, Any]], *_args: Any, **kwargs: Any
    ) -> ModelResponse:
        """Return the complete response; cancelling the task stops the generation."""
        with _errors_of(model):
            engine, request = self._engine_and_request(model, messages, **kwargs)
            answer = _Answer(model, request)
            async with aclosing(engine.stream(request)) as events:
                async for event in events:
                    answer.add(event)
        return answer.response()

    def streaming(
        self, model: str, messages: list[dict[str, Any]], *_args: Any, **kwargs: Any
    ) -> Iterator[ModelResponseStream]:
        """Return an iterator over chunks. Invalid fields raise before the stream starts."""
        with _errors_of(model):
            engine, request = self._engine_and_request(model, messages, **kwargs)
        return self._chunks_sync(model, engine, request)

    def astreaming(
        self, model: str, messages: list[dict[str, Any]], *_args: Any, **kwargs: Any
    ) -> AsyncIterator[ModelResponseStream]:
        """Return an async iterator over chunks; closing it stops the generation.

        Invalid fields raise before the stream starts.
        """
        with _errors_of(model):
            engine, request = self._engine_and_request(model, messages, **kwargs)
        return self._chunks(model, engine, request)

    def _engine_and_request(
        self,
        model: str,
        messages: list[dict[str, Any]],
        *,
        optional_params: dict[str, Any],
        litellm_params: dict[str, Any] | None = None,
        logging_obj: Any = None,
        **_others: Any,
    ) -> tuple[Engine, EngineRequest]:
        """Return the engine and the engine request for a LiteLLM call.

        `model` may name an adapter after a plus sign: `name+adapter`. As in Anthropic's API, a
        reply on the messages route continues a final message of the assistant.
        """
        if getattr(logging_obj, "call_type", None) == _MESSAGES_ROUTE and _ends_begun(messages):
            optional_params = {"continue_final_message": True, **optional_params}
        request = parse_request(messages, optional_params)
        adapter = model.partition("+")[2]
        if adapter:
            request = replace(request, adapter=adapter)
        return self.engine(model, litellm_params, request.adapter), request

    def _chunks_sync(
        self, model: str, engine: Engine, request: EngineRequest
    ) -> Iterator[ModelResponseStream]:
        chunks = _Chunks(model)
        with _errors_of(model), closing(engine.stream_sync(request)) as events:
            for event in events:
                yield from chunks.of(event)

    async def _chunks(
        self, model: str, engine: Engine, request: EngineRequest
    ) -> AsyncIterator[ModelResponseStream]:
        chunks = _Chunks(model)
        with _errors_of(model):
            async with aclosing(engine.stream(request)) as events:
                async for event in events:
                    for chunk in chunks.of(event):
                        yield chunk


def _ends_begun(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if the last message is text of the assistant."""
    last = messages[-1] if messages else {}
    return last.get("role") == "assistant" and bool(
        last.get("content") and not last.get("tool_calls")
    )


@contextmanager
def _errors_of(model: str) -> Iterator[None]:
    """Translate our errors into LiteLLM's, which keep the HTTP status."""
    try:
        yield
    except PromptTooLong as exc:
        raise litellm.ContextWindowExceededError(str(exc), model, PROVIDER) from exc
    except RequestRejected as exc:
        raise litellm.BadRequestError(str(exc), model, PROVIDER) from exc
    except UnknownModel as exc:
        raise litellm.NotFoundError(str(exc), model, PROVIDER) from exc
    except OptiLLMError as exc:
        if exc.status == 503:
            raise litellm.ServiceUnavailableError(str(exc), PROVIDER, model) from exc
        raise litellm.InternalServerError(str(exc), PROVIDER, model) from exc


class _Answer:
    """Assembles the events of a request into one response."""

    def __init__(self, model: str, request: EngineRequest) -> None:
        self._model = model
        self._scored = request.top_logprobs is not None
        self._choices = [Choice() for _ in range(request.n)]
        self._usage: Usage | None = None
        self._facts: Fields = {}

    def add(self, event: Piece | Finished) -> None:
        if isinstance(event, Piece):
            self._choices[event.choice].add(event)
        else:
            self._usage = _usage(event)
            self._facts = event.facts

    def response(self) -> ModelResponse:
        response = ModelResponse(
            id=_new_id(),
            model=self._model,
            choices=[
                Choices(
                    index=index,
                    finish_reason=choice.finish_reason,
                    message=Message(
                        role="assistant",
                        content=choice.text or (None if choice.tool_calls else ""),
                        reasoning_content=choice.reasoning or None,
                        tool_calls=[_call(call) for call in choice.tool_calls] or None,
                    ),
                    logprobs=_logprobs(choice.tokens) if self._scored else None,
                )
                for index, choice in enumerate(self._choices)
            ],
            usage=self._usage,
        )
        response._hidden_params["response_cost"] = 0.0
        if self._facts:
            response.optillm_decoding = dict(self._facts)
        return response


class _Chunks:
    """Converts the events of a request into the chunks of a stream.

    LiteLLM's stream wrapper reads only the finish reason of a chunk's first choice, ends the stream
    with it, and replaces later usage by an estimate. So the finish reasons of other choices are
    sent as second choices of chunks, usage next, and the finish reason of choice 0 last.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._id = _new_id()
        self._created = int(time.time())
        self._calls: dict[int, int] = {}
        """Number of tool calls sent so far, for each choice that has started."""

        self._first_reason: str | None = None

    def of(self, event: Piece | Finished) -> Iterator[ModelResponseStream]:
        if isinstance(event, Finished):
            totals = self._chunk([StreamingChoices(index=0, delta=Delta())], usage=_usage(event))
            if event.facts:
                totals.optillm_decoding = dict(event.facts)
            yield totals
            yield self._chunk([StreamingChoices(finish_reason=self._first_reason, delta=Delta())])
            return
        yield from map(self._part, _parts(event))
        if event.finish_reason is None:
            return
        if event.choice == 0:
            self._first_reason = event.finish_reason
        else:
            ended = StreamingChoices(event.finish_reason, index=event.choice, delta=Delta())
            yield self._chunk([StreamingChoices(index=0, delta=Delta()), ended])

    def _part(self, part: Piece) -> ModelResponseStream:
        role = None if part.choice in self._calls else "assistant"
        before = self._calls.get(part.choice, 0)
        self._calls[part.choice] = before + len(part.tool_calls)
        delta = Delta(
            content=part.text or (None if part.tool_calls else ""),
            role=role,
            reasoning_content=part.reasoning or None,
            tool_calls=[{**_call(call), "index": before} for call in part.tool_calls] or None,
        )
        logprobs = _logprobs(part.tokens) if part.tokens else None
        return self._chunk([StreamingChoices(index=part.choice, delta=delta, logprobs=logprobs)])

    def _chunk(
        self, choices: list[StreamingChoices], usage: Usage | None = None
    ) -> ModelResponseStream:
        return ModelResponseStream(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )


def _parts(piece: Piece) -> Iterator[Piece]:
    """Yield `piece` in parts, of which none has two kinds of content or two tool calls.

    LiteLLM's translation to `/v1/messages` takes one kind from a chunk, and one call.
    """
    if piece.reasoning:
        yield Piece(piece.choice, reasoning=piece.reasoning)
    if piece.text or piece.tokens:
        yield Piece(piece.choice, piece.text, tokens=piece.tokens)
    for call in piece.tool_calls:
        yield Piece(piece.choice, tool_calls=(call,))


def _usage(finished: Finished) -> Usage:
    return Usage(
        prompt_tokens=finished.prompt_tokens,
        completion_tokens=finished.completion_tokens,
        total_tokens=finished.prompt_tokens + finished.completion_tokens,
        prompt_tokens_details={"cached_tokens": finished.cached_tokens},
        completion_tokens_details={"reasoning_tokens": finished.reasoning_tokens},
    )


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _logprobs(tokens: Sequence[TokenLogprob]) -> ChoiceLogprobs:
    return ChoiceLogprobs(
        content=[
            ChatCompletionTokenLogprob(
                **_with_text(scored.token, scored.logprob),
                top_logprobs=[TopLogprob(**_with_text(*alternative)) for alternative in scored.top],
            )
            for scored in tokens
        ]
    )


def _with_text(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "bytes": list(token), "logprob": logprob}


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"
