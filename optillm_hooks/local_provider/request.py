"""The OpenAI chat request body: validates its fields and converts it to an EngineRequest."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from optillm_hooks.decoding.markers import MARKERS
from optillm_hooks.decoding.thinkdeeper import ThinkSettings
from optillm_hooks.errors import RequestRejected
from optillm_hooks.local_provider.decoding.methods import METHODS
from optillm_hooks.local_provider.engine_request import EngineRequest, Messages, SamplingParams

_WITHOUT_EFFECT = frozenset(
    {"extra_body", "extra_headers", "max_retries", "metadata", "prediction", "prompt_cache_key",
     "prompt_cache_retention", "safety_identifier", "service_tier", "store", "stream",
     "stream_options", "user"}
)  # fmt: skip
"""Fields without effect here, which clients or LiteLLM's router send to every model."""


_MAX_SCHEMA = 120_000
"""Maximum length of a schema in characters, as in OpenAI's API."""

_NAME = r"^[a-zA-Z0-9_.:-]{1,64}$"


class _JsonSchema(BaseModel):
    """A JSON schema; `strict` makes no difference here, since the schema is always enforced."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    document: dict[str, Any] = Field(default_factory=dict[str, Any], alias="schema")


class _JsonObjectFormat(BaseModel):
    model_config = ConfigDict(frozen=True)

    type: Literal["json_object"]

    @property
    def document(self) -> dict[str, Any]:
        return {"type": "object"}


class _JsonSchemaFormat(BaseModel):
    model_config = ConfigDict(frozen=True)

    type: Literal["json_schema"]
    json_schema: _JsonSchema

    @property
    def document(self) -> dict[str, Any]:
        return self.json_schema.document


class _TextFormat(BaseModel):
    model_config = ConfigDict(frozen=True)

    type: Literal["text"]
    document: None = None


class _Function(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = Field(pattern=_NAME)
    parameters: dict[str, Any] | None = None


class _Tool(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")

    type: Literal["function"]
    function: _Function


class _FunctionName(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str


class _NamedTool(BaseModel):
    model_config = ConfigDict(frozen=True)

    type: Literal["function"]
    function: _FunctionName


_TokenLimit = Annotated[
    Annotated[int, Field(ge=1)] | None, BeforeValidator(lambda n: None if n == -1 else n)
]
"""As in other local servers, -1 means no limit."""

_ResponseFormat = Annotated[
    _TextFormat | _JsonObjectFormat | _JsonSchemaFormat, Field(discriminator="type")
]


class ChatRequest(BaseModel):
    """The fields of a chat request that the engine supports; None: not sent."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = None
    max_tokens: _TokenLimit = None
    max_completion_tokens: _TokenLimit = None
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stop: str | list[str] | None = None
    n: int | None = Field(None, ge=1, le=128)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: _ResponseFormat | None = None
    tools: list[_Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | _NamedTool | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    active_adapter: str | None = Field(None, min_length=1, max_length=200)
    optillm_decoding: dict[str, dict[str, Any]] | None = Field(None, min_length=1, max_length=1)
    """A decoding method by name, with its settings."""

    def engine_request(self, messages: Messages) -> EngineRequest:
        """Return the engine request for `messages` with these fields."""
        limits = [m for m in (self.max_tokens, self.max_completion_tokens) if m is not None]
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return EngineRequest(
            messages=messages,
            tools=self._tools(),
            must_call=self._must_call(),
            parallel_tool_calls=self.parallel_tool_calls is not False,
            schema=self._schema(),
            sampling=SamplingParams(
                temperature=1.0 if self.temperature is None else self.temperature,
                top_p=1.0 if self.top_p is None else self.top_p,
                top_k=max(self.top_k or 0, 0),
                min_p=self.min_p or 0.0,
            ),
            n=self.n or 1,
            max_tokens=min(limits, default=None),
            stop=tuple(text for text in stop if text),
            seed=self.seed,
            adapter=self.active_adapter,
            decoding=self._decoding(),
            repetition_penalty=self.repetition_penalty or 1.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=self.logit_bias or {},
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )

    def _tools(self) -> list[dict[str, Any]] | None:
        if not self.tools or self.tool_choice == "none":
            return None
        return [tool.model_dump(exclude_unset=True) for tool in self.tools]

    def _must_call(self) -> tuple[str, ...]:
        """Return the names of the functions of which at least one must be called."""
        if self.tool_choice in (None, "none", "auto"):
            return ()
        names = tuple(tool.function.name for tool in self.tools or ())
        if isinstance(self.tool_choice, _NamedTool):
            names = tuple({self.tool_choice.function.name} & set(names))
        if not names:
            raise RequestRejected(
                "tool_choice does not name a tool of this request", param="tool_choice"
            )
        return names

    def _schema(self) -> dict[str, Any] | None:
        document = None if self.response_format is None else self.response_format.document
        if document is not None and len(json.dumps(document)) > _MAX_SCHEMA:
            raise RequestRejected(
                f"the schema has more than {_MAX_SCHEMA} characters", param="response_format"
            )
        return document

    def _decoding(self) -> BaseModel | None:
        for name, settings in (self.optillm_decoding or {}).items():
            if name not in METHODS:
                known = ", ".join(METHODS)
                raise RequestRejected(f"no decoding method {name!r}; known: {known}")
            method: BaseModel = METHODS[name].settings.model_validate(settings)
            if METHODS[name].one_choice and ((self.n or 1) > 1 or self.logprobs):
                raise RequestRejected(f"{name} returns one choice, without logprobs")
            formed = self._schema() is not None or self._must_call()
            if formed and isinstance(method, ThinkSettings) and method.markers != MARKERS:
                raise RequestRejected(
                    "with response_format or a required tool call, the thinking markers must be "
                    "<think> and </think>"
                )
            return method
        return None


def parse_request(messages: Messages, fields: Mapping[str, Any]) -> EngineRequest:
    """Return the engine request for the messages and other fields of a chat request.

    Raises:
        RequestRejected: a field is unknown or invalid, or there is no message.
    """
    if not messages:
        raise RequestRejected("messages must not be empty", param="messages")
    fields = {**fields, **(fields.get("extra_body") or {})}
    known = {k: v for k, v in fields.items() if k not in _WITHOUT_EFFECT and v is not None}
    try:
        request = ChatRequest.model_validate(known)
        engine_request = request.engine_request(messages)
    except ValidationError as exc:
        raise _rejection(exc) from None
    if request.top_logprobs is not None and not request.logprobs:
        raise RequestRejected("top_logprobs requires logprobs: true", param="top_logprobs")
    return engine_request


def _rejection(exc: ValidationError) -> RequestRejected:
    error = exc.errors()[0]
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return RequestRejected(f"local models do not support the field {name!r}", param=name)
    return RequestRejected(f"{name}: {error['msg']}, got {str(error['input'])[:80]}", param=name)
