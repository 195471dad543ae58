"""Plans: approach expressions with every name and parameter checked."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

from pydantic import ValidationError

from optillm_hooks.errors import RequestRejected
from optillm_hooks.pipeline import expression
from optillm_hooks.pipeline.expression import Call, Tree
from optillm_hooks.pipeline.optillm_names import unknown_approach
from optillm_hooks.registry import Approach, Cost, Params, get_approach
from optillm_hooks.settings import explain

PASS_THROUGH = "none"  # noqa: S105 (no password)
"""The approach that makes one plain call."""

_MAX_STAGES = 32
"""Maximum stages of a plan."""

_MAX_REPEATS = 2
"""Maximum uses of one rewriter, wrapper or decoder in a chain: re2 doubles the question."""


@dataclass(frozen=True, slots=True)
class Stage:
    """An approach with its parameters."""

    approach: Approach
    params: Params

    @property
    def cost(self) -> Cost:
        return self.approach.cost(self.params)


Chain = tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Chains of stages, which a request runs concurrently."""

    chains: tuple[Chain, ...]
    text: str
    """The expression in its shortest form, with the parameters as they were given."""

    @property
    def label(self) -> str:
        """The approaches' names without parameters, so that it has few distinct values."""
        return "|".join(map(chain_label, self.chains))

    @property
    def stages(self) -> list[Stage]:
        return [stage for chain in self.chains for stage in chain]

    @property
    def model_groups(self) -> frozenset[str]:
        """The model groups that parameters name, besides the base."""
        return frozenset(group for stage in self.stages for group in stage.params.model_groups())

    @property
    def is_confidential(self) -> bool:
        """Whether a stage keeps from models what the client sends."""
        return any(stage.params.confidential for stage in self.stages)

    @property
    def passes_through(self) -> bool:
        return self.label == PASS_THROUGH

    @property
    def expected_calls(self) -> int:
        """Calls of one run of every chain if nothing fails."""
        own = sum(stage.cost.calls for stage in self.stages)
        return own + sum(not makes_final_call(chain) for chain in self.chains)


def chain_label(chain: Chain) -> str:
    """Return the names of a chain's approaches, joined by `&`."""
    return "&".join(stage.approach.name for stage in chain)


def makes_final_call(chain: Chain) -> bool:
    """Return whether a stage of `chain` makes the final call; if not, a plain call is added."""
    return any(stage.approach.kind in ("answerer", "decoder") for stage in chain)


def resolve(
    tree: Tree,
    *,
    given: Mapping[str, Mapping[str, object]] | None = None,
    temperature: float | None = None,
) -> Plan:
    """Return the plan of `tree`, every name and parameter checked.

    Args:
        tree: the parsed expression.
        given: parameters by approach, which replace those in the expression.
        temperature: the client's, for stages whose parameter `temperature` is not given. It is
            ignored if out of the parameter's bounds, such as 0 where samples have to differ.

    Raises:
        RequestRejected: an unknown approach or parameter, a value out of bounds, a parameter for
            an approach that is not in the expression, too many stages, or ones that cannot be
            composed.
    """
    given = given or {}
    chains = tuple(
        tuple(_stage(call, given.get(call.name, {}), temperature) for call in calls)
        for calls in expression.branches(tree)
    )
    plan = Plan(chains, expression.unparse(tree))
    named = {stage.approach.name for stage in plan.stages}
    for name in given:
        if name not in named:
            raise RequestRejected(
                f"optillm_params sets {name!r}, which is not in the approach {plan.text!r}",
                param="optillm_params",
            )
    if len(plan.stages) > _MAX_STAGES:
        raise RequestRejected(f"a request can have at most {_MAX_STAGES} approaches")
    for chain in chains:
        _check_repeated(chain)
        _check_one_decoder(chain)
        _check_confidential(chain)
        if len(chain) > 1 and any(stage.approach.name == PASS_THROUGH for stage in chain):
            raise RequestRejected(
                f"{PASS_THROUGH!r} makes a plain call and cannot be composed by '&': leave it out"
            )
    return plan


def _check_repeated(chain: Chain) -> None:
    """Refuse a rewriter, wrapper or decoder that a chain contains more than `_MAX_REPEATS` times.

    Raises:
        RequestRejected: the message names the approach.
    """
    feeding = [s.approach.name for s in chain if s.approach.kind != "answerer"]
    repeated = next((name for name in feeding if feeding.count(name) > _MAX_REPEATS), None)
    if repeated is not None:
        raise RequestRejected(
            f"{repeated!r} appears more than {_MAX_REPEATS} times in one chain of '&'"
        )


def _check_confidential(chain: Chain) -> None:
    """Refuse a stage before one that keeps from models what the client sends.

    Raises:
        RequestRejected: the message names both.
    """
    for before, stage in pairwise(chain):
        if stage.params.confidential:
            raise RequestRejected(
                f"{stage.approach.name!r} has to be the first of a chain of '&': "
                f"{before.approach.name!r} would send what it hides"
            )


def _check_one_decoder(chain: Chain) -> None:
    """Refuse two decoders in a chain: each decides how every token is sampled.

    Raises:
        RequestRejected: the message names them.
    """
    decoders = [stage.approach.name for stage in chain if stage.approach.kind == "decoder"]
    if len(decoders) > 1:
        raise RequestRejected(
            f"a chain of '&' can have only one decoder, got {' and '.join(decoders)}"
        )


def stage_of(name: str, given: Mapping[str, object], temperature: float | None) -> Stage:
    """Return a stage that is not in the expression; see `resolve`.

    Raises:
        RequestRejected: an unknown approach or parameter, or a value out of bounds.
    """
    return _stage(Call(name), given, temperature)


def _stage(call: Call, given: Mapping[str, object], temperature: float | None) -> Stage:
    try:
        found = get_approach(call.name)
    except RequestRejected:
        reason = unknown_approach(call.name)
        raise RequestRejected(f"approach expression, column {call.column}: {reason}") from None
    chosen: dict[str, object] = {**dict(call.args), **given}
    if temperature is not None and "temperature" in found.params.model_fields.keys() - chosen:
        # An error that is not about the temperature is raised below.
        with suppress(ValidationError):
            return Stage(found, found.params.model_validate({**chosen, "temperature": temperature}))
    try:
        return Stage(found, found.params.model_validate(chosen))
    except ValidationError as exc:
        raise _bad_params(call.name, found.params, exc) from None


def _bad_params(name: str, model: type[Params], exc: ValidationError) -> RequestRejected:
    problems: list[str] = []
    for error in exc.errors():
        field_name = ".".join(str(part) for part in error["loc"])
        if error["type"] == "extra_forbidden":
            allowed = ", ".join(model.model_fields) or "none"
            problems.append(f"unknown parameter {field_name!r} (it accepts: {allowed})")
        else:
            got = _shown(error["input"])
            problems.append(f"{field_name or 'parameters'}: {explain(error, model)}{got}")
    return RequestRejected(f"{name}: {'; '.join(problems)}", param="optillm_params")


def _shown(value: object) -> str:
    """Return the bad value for an error message, unless it is long or not a scalar."""
    return (
        f", got {value!r}" if isinstance(value, int | float | str) and len(str(value)) < 64 else ""
    )
