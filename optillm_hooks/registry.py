"""The registry of approaches: decorators that register them, and look-up by name.

There are four kinds of stage:

* rewriter: returns another conversation, which the stages after it answer (re2).
* wrapper: runs the stages after it inside itself, on a conversation and models of its choice.
* decoder: changes how the stages after it generate text (cot_decoding).
* answerer: returns an answer, or the final call that will give it (bon, moa).
"""

import inspect
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Protocol, Self, TypeVar

from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from optillm_hooks.context import Context
from optillm_hooks.errors import RequestRejected
from optillm_hooks.llm import LLM, FinalCall, Scorer
from optillm_hooks.packages import allowed_entries, package_of
from optillm_hooks.services import Services
from optillm_hooks.types import Answer, Chat, Completion, Delta, Sampling

ENTRY_POINT_GROUP = "optillm_hooks.approaches"
"""Other packages name a module under it; loading the module registers its approaches."""

OWN_PACKAGE: Final = "optillm-hooks"

Kind = Literal["rewriter", "wrapper", "decoder", "answerer"]
Need = Literal["code", "solver", "network", "tools", "memory"]
"""What an approach does besides calling models. The operator's `forms` can exclude it by this."""


class NoFields(BaseModel):
    """A pydantic model without fields."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aside:
    """An approach expression that a stage may run beside its own work (`Rest.aside`)."""

    expression: str
    parameter: str
    """The parameter that holds the expression, for error messages."""

    times: int
    """How often it may run at most."""

    model: str | None = None
    """The model group it runs on; None is the base model."""

    answers: bool = False
    """Whether its answer may be the client's, for which the client's sampling holds."""


def over_named(
    given: dict[str, Any], field: str, info: ValidationInfo, place: str
) -> dict[str, Any]:
    """Return parameters over the values of the set that `field` names, which the context has.

    `place` says where the operator writes such sets, for the error.

    Raises:
        ValueError: there is no set of this name.
    """
    known: Mapping[str, Mapping[str, object]] = info.context or {}
    name = str(given[field])
    if name not in known:
        names = ", ".join(sorted(known)) or f"none; the operator sets them in {place}"
        raise ValueError(f"unknown {field} {name[:80]!r} (known: {names})")
    return {**known[name], **given}


class Params(BaseModel):
    """Base class of an approach's parameters: immutable, and an unknown name is an error.

    Each field has a description, bounds and a default. A field named `temperature` that is not
    given takes the client's temperature if that is within bounds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    body_fields: ClassVar[Mapping[str, str]] = {}
    """Parameters by the request body fields that OptiLLM's clients use for them."""

    ignored: ClassVar[type[BaseModel]] = NoFields
    """Fields that OptiLLM's clients may send and that have no effect here. They are validated,
    because a value that has an effect in OptiLLM must be refused."""

    model_group_fields: ClassVar[tuple[str, ...]] = ()
    """Parameters that name other model groups, which the caller must be allowed to use."""

    judge_fields: ClassVar[tuple[str, ...]] = ()
    """The `model_group_fields` whose models only judge: a decoder does not change their calls."""

    scorer_fields: ClassVar[tuple[str, ...]] = ()
    """The `judge_fields` whose models only rate or choose: they can name a `Scorer` too."""

    reads_any_field: ClassVar[bool] = False
    """Whether it reads request fields that are not known here, as plugin files of OptiLLM do."""

    samples_field: ClassVar[str] = ""
    """The parameter that says how many answers are sampled, at most, if there is one."""

    width_fields: ClassVar[tuple[str, ...]] = ()
    """Further parameters that are lowered with it when a worker is busy, such as rounds."""

    confidential: ClassVar[bool] = False
    """Whether the stage keeps from models what the client sends. It has to be the first of its
    chain, and no fallback of the router may answer the request in its place."""

    @classmethod
    def request_fields(cls) -> Mapping[str, str]:
        """Return the body fields of a request to read, to their names here."""
        return {**cls.body_fields, **{name: name for name in cls.ignored.model_fields}}

    @model_validator(mode="before")
    @classmethod
    def _without_ignored(cls, given: Any) -> Any:
        names = cls.ignored.model_fields
        if not isinstance(given, dict) or not names:
            return given
        cls.ignored.model_validate(given)
        return {name: value for name, value in given.items() if name not in names}

    def model_groups(self) -> tuple[str, ...]:
        """Return the model groups that the parameters name, in order."""
        return self._groups(self.model_group_fields)

    def generators(self) -> tuple[str, ...]:
        """Return the model groups that write answers, in order: those that do not only judge."""
        return self._groups([f for f in self.model_group_fields if f not in self.judge_fields])

    def writers(self) -> tuple[str, ...]:
        """Return the model groups that must write text, in order: a scorer cannot stand there."""
        return self._groups([f for f in self.model_group_fields if f not in self.scorer_fields])

    def _groups(self, fields: Iterable[str]) -> tuple[str, ...]:
        named: list[str] = []
        for name in fields:
            value = getattr(self, name)
            named += [value] if isinstance(value, str) else list(value or ())
        return tuple(named)

    def narrowed(self, width: int) -> Self:
        """Return these parameters with `width` samples at most, or the fewest that there can be."""
        fewer: dict[str, int] = {}
        for name in (self.samples_field, *self.width_fields):
            value = getattr(self, name, None)
            if value is not None and value > width:
                bounds = type(self).model_fields[name].metadata
                least = next((int(str(bound.ge)) for bound in bounds if isinstance(bound, Ge)), 1)
                fewer[name] = max(width, least)
        return self.model_copy(update=fewer) if fewer else self

    def runs_of_rest(self) -> int:
        """Return how often a wrapper may run the stages inside it at most."""
        return 1

    def aside(self) -> Aside | None:
        """Return the approach expression that the stage may run beside its own work, if any."""
        return None

    def check_services(self, services: Services) -> None:
        """Raise `RequestRejected` if the stage needs a service that is missing.

        It is called before any call is paid for. The message says what the operator has to set, or
        which extra has to be installed.
        """

    def check_model(self, model: str, supports: Callable[[str], bool]) -> None:
        """Raise `RequestRejected` if the stage cannot run on `model`.

        It is called before any call is paid for. By default a stage runs on any model.

        Args:
            model: the name of the model.
            supports: returns whether the model accepts a request field.
        """


class DraftingParams(Params):
    """Base class of the parameters of an approach that calls models for more than answers."""

    draft_tokens: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Maximum tokens of each intermediate call (a draft, a plan, a judgement), "
        "reasoning included (a thinking budget that the client sets is added), up to the model's "
        "maximum; unset: the provider's default. The client's max_tokens limits only its answer.",
    )


class SettlingParams(Params):
    """Base class of the parameters of an approach that stops when its answers agree."""

    models: tuple[str, ...] = Field(
        default=(),
        max_length=16,
        description="Model groups that are sampled, in turn; empty: the base model alone.",
    )
    confidence: float = Field(
        default=0.9,
        ge=0.5,
        le=1,
        description="Sampling stops when the leading answer is the most frequent one with at least "
        "this probability; 1: only when further samples cannot change that.",
    )
    model_group_fields: ClassVar[tuple[str, ...]] = ("models",)


class SamplerParams(SettlingParams):
    """Base class of the parameters of an approach that samples answers and compares them."""

    first_m: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Number of samples to wait for: all are begun at the same time, and the others "
        "are cancelled; unset: samples are taken in up to two waves.",
    )

    samples_field: ClassVar[str] = "n"

    def narrowed(self, width: int) -> Self:
        fewer = super().narrowed(width)
        samples = getattr(fewer, self.samples_field, None)
        if fewer is self or fewer.first_m is None or samples is None:
            return fewer
        return fewer.model_copy(update={"first_m": min(fewer.first_m, samples)})

    @model_validator(mode="after")
    def _first_m_of_them(self) -> Self:
        samples = getattr(self, self.samples_field, None)
        if self.first_m is not None and samples is not None and self.first_m > samples:
            raise ValueError(
                f"first_m must be at most {self.samples_field} ({samples}), got {self.first_m}"
            )
        return self


ChooseBy = Literal["auto", "agreement", "rating"]


class ChoosingParams(Params):
    """Base class of the parameters of an approach that chooses by ratings."""

    choose_by: ChooseBy = Field(
        default="auto",
        description="rating: the candidate rated highest; agreement: the answer with the highest "
        "sum of ratings, which a weak judge spoils less; auto: agreement, or rating once decoys "
        "have shown that the judge is nearly always right.",
    )


class MeasuredParams(Params):
    """Base class of the parameters of an approach whose judge can be measured."""

    decoys: int = Field(
        default=0,
        ge=0,
        le=16,
        description="Wrong solutions that are written and judged among the candidates, to measure "
        "the judge; one that is no better than chance is put aside for a vote. Each costs a call "
        "and its judgements; 0: not measured.",
    )


class JudgedParams(ChoosingParams, MeasuredParams):
    """Base class of the parameters of an approach whose candidates a judge rates."""


class NoParams(Params):
    """Parameters of an approach that has none."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a stage in model calls, if nothing fails and no provider honours `n`."""

    calls: int
    depth: int
    """Calls on the critical path."""

    remote_calls: int | None = None
    """Calls for each decoded reply of a model that does not run the method itself, at most; None:
    as many as `calls`. Only for decoders."""


P = TypeVar("P", bound=Params)
Result = Answer | FinalCall
Through = Callable[[LLM], LLM]
"""Returns a model that calls the given one, and changes what goes in or what comes out."""

Scoring = Callable[[Scorer], Scorer]
"""The same for a scorer."""


class Rest(Protocol):
    """The stages after a wrapper."""

    async def __call__(
        self, chat: Chat, /, *, through: Through | None = None, scoring: Scoring | None = None
    ) -> Result:
        """Run the stages on `chat` and return their result.

        If a limit or a failure ends them, it is their best answer so far. A wrapper that changes
        answers must change the fallback of a final call too, and add its filter to `wrappers`.

        Args:
            chat: the conversation.
            through: applied to every model that the stages call.
            scoring: applied to every scorer.
        """
        ...

    async def whole(self, chat: Chat, /, *, through: Through | None = None) -> Answer:
        """Run the stages on `chat` and return their answer: their final call is made too.

        It is for a wrapper that must see the whole answer before the client sees any of it.
        """
        ...

    def pieces(self, chat: Chat, /) -> AsyncGenerator[Delta, None]:
        """Run the stages on `chat` and yield their answer piece by piece, as the client gets it.

        It is for a wrapper that returns a final call of its own, whose model calls this later. A
        `SampleError` may come before or between the pieces.
        """
        ...

    async def aside(self, chat: Chat, /, *, until: float) -> Answer:
        """Return the answer to `chat` of the expression that the wrapper has (`Params.aside`).

        It is a run of its own: it has the request's budget, but none of the client's tools and
        formats. The budget's last call is not for it. At the instant `until`, or if it fails, its
        best answer so far is returned.

        Raises:
            SampleError: there is no answer.
        """
        ...

    def behind(self, name: str, /, **given: object) -> "Rest":
        """Return the stages with the approach `name` in front of them.

        Args:
            name: of an approach that is no decoder.
            given: its parameters; a temperature that is not given is the client's.

        Raises:
            RequestRejected: an unknown approach or parameter, or a value out of bounds.
        """
        ...


AnswererFn = Callable[[Chat, LLM, P, Context], Awaitable[Result]]
RewriterFn = Callable[[Chat, LLM, P, Context], Awaitable[Chat]]
WrapperFn = Callable[[Chat, Rest, LLM, P, Context], Awaitable[Result]]
DecoderFn = Callable[[Chat, Sampling, LLM, P, Context], Awaitable[Completion | Sampling]]
"""Returns a reply that it decoded itself, or the sampling parameters for the model to do so.

Only the latter can be streamed.
"""

CostFn = Callable[[P], Cost]


@dataclass(frozen=True, slots=True)
class Approach:
    """A registered approach. `run` has the signature of its kind."""

    name: str
    kind: Kind
    params: type[Params]
    run: Callable[..., Awaitable[Any]]
    cost: Callable[[Any], Cost]
    needs: frozenset[Need]
    origin: str = OWN_PACKAGE
    """The installed package that it comes from, or the path of a plugin file."""

    @property
    def doc(self) -> str:
        """The docstring of the approach's module: what it does, its source, its cost."""
        return inspect.cleandoc(sys.modules[self.run.__module__].__doc__ or "")


_approaches: dict[str, Approach] = {}
_origin: Final = ContextVar("origin", default=OWN_PACKAGE)


@contextmanager
def registering(origin: str) -> Iterator[None]:
    """Note `origin` (see `Approach`) on the approaches that are registered within the block."""
    token = _origin.set(origin)
    try:
        yield
    finally:
        _origin.reset(token)


def _register(
    name: str, kind: Kind, params: type[P], cost: CostFn[P], needs: Iterable[Need]
) -> Callable[[Callable[..., Awaitable[Any]]], None]:
    def register(fn: Callable[..., Awaitable[Any]]) -> None:
        if not name.isidentifier():
            raise ValueError(f"approach name {name!r} must be letters, digits and underscores")
        if name in _approaches:
            raise ValueError(f"approach {name!r} is registered twice")
        _approaches[name] = Approach(name, kind, params, fn, cost, frozenset(needs), _origin.get())

    return register


def approach(
    name: str, params: type[P], *, cost: CostFn[P], needs: Iterable[Need] = ()
) -> Callable[[AnswererFn[P]], AnswererFn[P]]:
    """Register the decorated answerer under `name`."""
    register = _register(name, "answerer", params, cost, needs)

    def decorate(fn: AnswererFn[P]) -> AnswererFn[P]:
        register(fn)
        return fn

    return decorate


def rewriter(
    name: str, params: type[P], *, cost: CostFn[P], needs: Iterable[Need] = ()
) -> Callable[[RewriterFn[P]], RewriterFn[P]]:
    """Register the decorated rewriter under `name`; `cost` excludes the stages after it."""
    register = _register(name, "rewriter", params, cost, needs)

    def decorate(fn: RewriterFn[P]) -> RewriterFn[P]:
        register(fn)
        return fn

    return decorate


def wrapper(
    name: str, params: type[P], *, cost: CostFn[P], needs: Iterable[Need] = ()
) -> Callable[[WrapperFn[P]], WrapperFn[P]]:
    """Register the decorated wrapper under `name`; `cost` excludes the stages inside it."""
    register = _register(name, "wrapper", params, cost, needs)

    def decorate(fn: WrapperFn[P]) -> WrapperFn[P]:
        register(fn)
        return fn

    return decorate


def decoder(
    name: str, params: type[P], *, cost: CostFn[P], needs: Iterable[Need] = ()
) -> Callable[[DecoderFn[P]], DecoderFn[P]]:
    """Register the decorated decoder under `name`; `cost` is that of one decoded reply."""
    register = _register(name, "decoder", params, cost, needs)

    def decorate(fn: DecoderFn[P]) -> DecoderFn[P]:
        register(fn)
        return fn

    return decorate


def get_approach(name: str) -> Approach:
    """Return the approach registered under `name`.

    Raises:
        RequestRejected: there is none.
    """
    try:
        return _approaches[name]
    except KeyError:
        known = ", ".join(sorted(_approaches))
        raise RequestRejected(f"unknown approach {name!r}; known: {known}") from None


def is_registered(name: str) -> bool:
    """Return whether there is an approach `name`."""
    return name in _approaches


def all_approaches() -> list[Approach]:
    """Return every registered approach, by name."""
    return [_approaches[name] for name in sorted(_approaches)]


def load_entry_points() -> list[str]:
    """Register the approaches of the packages that the operator allows (`packages.allow`).

    Returns:
        What is wrong with those that cannot be loaded.
    """
    problems: list[str] = []
    for entry in allowed_entries(ENTRY_POINT_GROUP):
        package = package_of(entry)
        try:
            with registering(package):
                entry.load()
        # An import can end in any way, such as by sys.exit(). The proxy starts all the same.
        except (Exception, SystemExit) as exc:
            where = f"approach {entry.name!r} of the package {package} ({entry.value})"
            problems.append(f"{where}: {type(exc).__name__}: {exc}")
    return problems
