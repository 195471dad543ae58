"""The OpenAI chat request body: validates its fields and converts it to an EngineRequest."""

import json
import reprlib
from collections.abc import Mapping
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from optillm_hooks.decoding.markers import MARKERS
from optillm_hooks.decoding.thinkdeeper import ThinkSettings
from optillm_hooks.errors import RequestRejected
from optillm_hooks.local_provider.decoding.methods import METHODS
from optillm_hooks.local_provider.engine_request import (
    EngineRequest,
    Messages,
    PromptOptions,
    SamplingParams,
)
from optillm_hooks.wrong_values import wrong_value

_WITHOUT_EFFECT = frozenset(
    {"extra_body", "extra_headers", "max_retries", "metadata", "prediction", "prompt_cache_key",
     "prompt_cache_retention", "safety_identifier", "service_tier", "store", "stream",
     "stream_options", "user"}
)  # fmt: skip
"""Fields without effect here, which clients or LiteLLM's router send to every model."""


_MAX_SCHEMA = 120_000
"""Maximum length of a schema in characters, as in OpenAI's API."""

_MAX_VARIABLES = 20_000
"""Maximum length of `chat_template_kwargs` in characters of JSON."""

_MAX_STOPS = 128
_MAX_MODALITIES = 16
_MAX_ERRORS = 1000
"""Number of values that may all be wrong: an error is made for each, and the first one shown."""

_NAME = r"^[a-zA-Z0-9_.:-]{1,64}$"

_OWN_ARGUMENTS = frozenset(
    {
        "chat_template", "conversation", "max_length", "messages", "padding",
        "return_assistant_tokens_mask", "return_dict", "return_tensors",
        "sanitize_control_tokens", "self", "tokenize", "tokenizer_kwargs", "tools", "truncation",
    }
)  # fmt: skip
"""Variables of a chat template that a request cannot set: they are the engine's own."""

_FIELDS_OF_THEIR_OWN = ("add_generation_prompt", "continue_final_message")
"""Variables of a chat template that a request sets by a field."""


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


class _Thinking(BaseModel):
    """The field `thinking` of Anthropic's API."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=0, le=2**31)

    @property
    def budget(self) -> int | None:
        return None if self.type == "disabled" else self.budget_tokens


_Effort = Annotated[
    Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "default", "disable"],
    BeforeValidator(lambda e: e.get("effort") if isinstance(e, Mapping) else e),
]
"""An object, as on the responses route, has the effort as one of its fields."""

_Stops = Annotated[
    list[Annotated[str, Field(max_length=4096)]],
    Field(max_length=_MAX_STOPS),
    BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop),
]

_Bias = Annotated[float, Field(ge=-100, le=100)]


def _in_parts(biases: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Validate biases in parts: errors for each token of a vocabulary would take seconds."""
    if not isinstance(biases, Mapping):
        return validate(biases)
    items, valid = iter(biases.items()), dict[int, float]()
    while part := dict(islice(items, _MAX_ERRORS)):
        valid |= validate(part)
    return valid


_LogitBias = Annotated[dict[int, _Bias], WrapValidator(_in_parts)]

_ResponseFormat = Annotated[
    _TextFormat | _JsonObjectFormat | _JsonSchemaFormat, Field(discriminator="type")
]


_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""The parameters for which a model may have defaults of its own."""


class ChatRequest(BaseModel):
    """The fields of a chat request that the engine supports; None: not sent."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    max_tokens: _TokenLimit = None
    max_completion_tokens: _TokenLimit = None
    min_tokens: int | None = Field(None, ge=0, le=2**31)
    ignore_eos: bool | None = None
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: _LogitBias | None = None
    stop: _Stops | None = None
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = Field(None, max_length=_MAX_STOPS)
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    n: int | None = Field(None, ge=1, le=128)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: _ResponseFormat | None = None
    tools: list[_Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | _NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, max_length=_MAX_ERRORS)
    reasoning_effort: _Effort | None = None
    thinking: _Thinking | None = None
    enable_thinking: bool | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    modalities: list[Literal["text"]] | None = Field(None, max_length=_MAX_MODALITIES)
    active_adapter: str | None = Field(None, min_length=1, max_length=200)
    optillm_decoding: dict[str, dict[str, Any]] | None = Field(None, min_length=1, max_length=1)
    """A decoding method by name, with its settings."""

    def engine_request(self, messages: Messages) -> EngineRequest:
        """Return the engine request for `messages` with these fields."""
        limits = [m for m in (self.max_tokens, self.max_completion_tokens) if m is not None]
        # A grammar ends the reply when it is complete.
        formed = self._schema() is not None or bool(self._must_call())
        return EngineRequest(
            messages=messages,
            prompt=self._prompt(messages),
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
            unset=frozenset(name for name in _SAMPLING if getattr(self, name) is None),
            n=self.n or 1,
            max_tokens=min(limits, default=None),
            min_tokens=0 if formed else self.min_tokens or 0,
            stop=tuple(filter(None, self.stop or ())),
            stop_token_ids=frozenset(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos) and not formed,
            include_stop=self.include_stop_str_in_output or False,
            skip_special_tokens=self.skip_special_tokens is not False,
            seed=self.seed,
            adapter=self.active_adapter,
            decoding=self._decoding(),
            repetition_penalty=self.repetition_penalty or 1.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=self.logit_bias or {},
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )

    def _prompt(self, messages: Messages) -> PromptOptions:
        """Return how the chat template writes `messages`.

        As in vLLM, a final message of the assistant is only continued if a field says so.
        """
        last = messages[-1] if isinstance(messages[-1], Mapping) else {}
        continued = self.continue_final_message or last.get("prefix") is True
        if continued and last.get("role") != "assistant":
            raise RequestRejected(
                "continue_final_message needs a last message of the assistant, which it continues",
                param="continue_final_message",
            )
        if continued and self.add_generation_prompt:
            raise RequestRejected(
                "add_generation_prompt begins a new message, and continue_final_message goes on "
                "with the last one: send one of them",
                param="add_generation_prompt",
            )
        effort = None if self.reasoning_effort == "default" else self.reasoning_effort
        thinks = self.enable_thinking
        if self.thinking is not None:
            thinks = self.thinking.type != "disabled"
        return PromptOptions(
            variables=self._variables(),
            reasoning_effort=effort,
            thinking=thinks,
            thinking_budget=self.thinking.budget if self.thinking is not None else None,
            continue_final=continued,
            begin_reply=self.add_generation_prompt is not False,
        )

    def _variables(self) -> dict[str, Any]:
        """Return the variables of the chat template that the request sets."""
        variables = {k: v for k, v in (self.chat_template_kwargs or {}).items() if v is not None}
        if len(json.dumps(variables)) > _MAX_VARIABLES:
            raise RequestRejected(
                f"chat_template_kwargs has more than {_MAX_VARIABLES} characters",
                param="chat_template_kwargs",
            )
        for name in variables:
            place = f"chat_template_kwargs.{name[:80]}"
            if name in _FIELDS_OF_THEIR_OWN:
                raise RequestRejected(f"{place}: send {name} as a field of its own", param=place)
            if name in _OWN_ARGUMENTS or name.endswith("_token"):
                raise RequestRejected(f"{place}: a request cannot set this", param=place)
        return variables

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
            model = METHODS[name].settings
            method: BaseModel = model.model_validate(_with_one_unknown(settings, model))
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
    extra = fields.get("extra_body") or {}
    if not isinstance(extra, Mapping):
        raise RequestRejected("extra_body must be an object", param="extra_body")
    fields = {**fields, **extra}
    known = {k: v for k, v in fields.items() if k not in _WITHOUT_EFFECT and v is not None}
    try:
        request = ChatRequest.model_validate(_with_one_unknown(known, ChatRequest))
        engine_request = request.engine_request(messages)
    except ValidationError as exc:
        raise _rejection(exc) from None
    except RecursionError:
        raise RequestRejected("the fields of the request are nested too deeply") from None
    if request.top_logprobs is not None and not request.logprobs:
        raise RequestRejected("top_logprobs requires logprobs: true", param="top_logprobs")
    return engine_request


def _rejection(exc: ValidationError) -> RequestRejected:
    error = exc.errors()[0]
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return RequestRejected(f"local models do not support the field {name!r}", param=name)
    value = error["input"]
    shown = value[:80] if isinstance(value, str) else reprlib.repr(value)
    return RequestRejected(f"{name}: {wrong_value(error)}, got {shown}", param=name)


def _with_one_unknown(fields: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Return `fields` without the unknown ones but the first, which is the one that is refused."""
    names = model.model_fields
    unknown = (item for item in fields.items() if item[0] not in names)
    known = {name: value for name, value in fields.items() if name in names}
    return {**known, **dict(islice(unknown, 1))}
