"""Plans: approach expressions with every name and parameter checked."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

from pydantic import ValidationError

from optillm_hooks.errors import RequestRejected
from optillm_hooks.pipeline import expression
from optillm_hooks.pipeline.expression import Call, Tree
from optillm_hooks.pipeline.optillm_names import unknown_approach
from optillm_hooks.registry import Approach, Aside, Cost, Params, get_approach, is_registered
from optillm_hooks.settings import Presets, explain, shown

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
    inside: tuple["Stage", ...] = ()
    """The chain that the stage may run beside its own work (`Params.aside`)."""

    @property
    def cost(self) -> Cost:
        """The cost of the stage alone."""
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
        """All stages, those inside others too."""
        return [each for chain in self.chains for stage in chain for each in (stage, *stage.inside)]

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
        """Calls of one run of every chain if nothing fails and the models decode by themselves."""
        return self.calls(decoded_remotely=False)

    @property
    def has_remote_decoder(self) -> bool:
        """Whether a decoder needs more calls on a model that does not run the method itself."""
        return any(stage.cost.remote_calls is not None for stage in self.stages)

    def narrowed(self, width: int) -> "Plan":
        """Return this plan with at most `width` samples in each stage, as far as it can have so."""
        return replace(self, chains=tuple(_narrowed(chain, width) for chain in self.chains))

    def calls(self, *, decoded_remotely: bool) -> int:
        """Return the calls of one run of every chain if nothing fails.

        A decoder decodes every call of the stages after it. The calls of judges, which it does not
        decode, count as decoded too: which they are is only known when they are made.
        """
        return sum(cost_of(chain, decoded_remotely=decoded_remotely).calls for chain in self.chains)

    def depth(self, *, decoded_remotely: bool) -> int:
        """Return the calls on the critical path: those of the longest chain, one after another."""
        costs = (cost_of(chain, decoded_remotely=decoded_remotely) for chain in self.chains)
        return max(cost.depth for cost in costs)

    @property
    def planned_calls(self) -> int:
        """The expected calls without those of chains that a stage may run beside its own work."""
        return sum(cost_of(chain, asides=False).calls for chain in self.chains)


def _narrowed(chain: Chain, width: int) -> Chain:
    return tuple(
        replace(stage, params=stage.params.narrowed(width), inside=_narrowed(stage.inside, width))
        for stage in chain
    )


def cost_of(chain: Chain, *, decoded_remotely: bool = False, asides: bool = True) -> Cost:
    """Return the cost of a chain, with the plain call that ends it if no stage answers.

    Args:
        chain: the stages.
        decoded_remotely: whether the models do not run the methods of decoders themselves.
        asides: whether the chains count that stages may run beside their own work.
    """
    calls, depth, each, runs = 0, 0, Cost(1, 1), 1
    for stage in chain:
        own, aside = stage.cost, stage.params.aside()
        if stage.approach.kind == "decoder":
            remote = own.remote_calls if decoded_remotely else None
            each = own if remote is None else Cost(remote, own.depth)
            continue
        if asides and aside is not None:
            once = cost_of(stage.inside, decoded_remotely=decoded_remotely)
            own = Cost(own.calls + aside.times * once.calls, own.depth + aside.times * once.depth)
        calls += own.calls * each.calls * runs
        depth += own.depth * each.depth * runs
        runs *= stage.params.runs_of_rest()
    if not any(stage.approach.kind == "answerer" for stage in chain):
        calls, depth = calls + each.calls * runs, depth + each.depth * runs
    return Cost(calls, depth)


def chain_label(chain: Chain) -> str:
    """Return the names of a chain's approaches, joined by `&`."""
    return "&".join(stage.approach.name for stage in chain)


def resolve(
    tree: Tree,
    *,
    given: Mapping[str, Mapping[str, object]] | None = None,
    temperature: float | None = None,
    presets: Presets | None = None,
) -> Plan:
    """Return the plan of `tree`, every name and parameter checked.

    Args:
        tree: the parsed expression.
        given: parameters by approach, which replace those in the expression.
        temperature: the client's, for stages whose parameter `temperature` is not given. It is
            ignored if out of the parameter's bounds, such as 0 where samples have to differ.
        presets: those of the operator.

    Raises:
        RequestRejected: an unknown approach or parameter, a value out of bounds, a parameter for
            an approach that is not in the expression, too many stages, or ones that cannot be
            composed.
    """
    given = given or {}
    around = _Around(given, temperature, presets or {})
    chains = tuple(
        tuple(_stage(call, around) for call in calls) for calls in expression.branches(tree)
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
        _check_chain(chain)
    return plan


def _check_chain(chain: Chain) -> None:
    """Refuse stages that cannot be composed.

    Raises:
        RequestRejected: the message names them.
    """
    _check_repeated(chain)
    _check_one_decoder(chain)
    _check_confidential(chain)
    if len(chain) > 1 and any(stage.approach.name == PASS_THROUGH for stage in chain):
        raise RequestRejected(
            f"{PASS_THROUGH!r} makes a plain call and cannot be composed by '&': leave it out"
        )


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
    return _stage(Call(name), _Around({name: given}, temperature, {}))


@dataclass(frozen=True, slots=True)
class _Around:
    """What besides the expression decides parameters; see `resolve`."""

    given: Mapping[str, Mapping[str, object]]
    temperature: float | None
    presets: Presets


def _stage(call: Call, around: _Around) -> Stage:
    try:
        found = get_approach(call.name)
    except RequestRejected:
        reason = unknown_approach(call.name)
        raise RequestRejected(f"approach expression, column {call.column}: {reason}") from None
    params = _params(found, {**dict(call.args), **around.given.get(call.name, {})}, around)
    return Stage(found, params, _inside(call.name, params.aside(), around))


def _params(found: Approach, chosen: dict[str, object], around: _Around) -> Params:
    temperature, presets = around.temperature, around.presets.get(found.name)
    if temperature is not None and "temperature" in found.params.model_fields.keys() - chosen:
        # An error that is not about the temperature is raised below.
        with suppress(ValidationError):
            with_it = {**chosen, "temperature": temperature}
            return found.params.model_validate(with_it, context=presets)
    try:
        return found.params.model_validate(chosen, context=presets)
    except ValidationError as exc:
        raise _bad_params(found.name, found.params, exc) from None


def _inside(name: str, aside: Aside | None, around: _Around) -> Chain:
    """Return the chain that the stage `name` may run beside its own work.

    Raises:
        RequestRejected: it is no valid chain, or one that cannot run there.
    """
    if aside is None:
        return ()
    try:
        calls = _only_branch(expression.parse(aside.expression))
        for call in calls:
            _check_may_be_inside(call.name, name)
        chain = tuple(_stage(call, around) for call in calls)
        _check_chain(chain)
    except RequestRejected as exc:
        raise RequestRejected(f"{name}: {aside.parameter}: {exc}", param=exc.param) from None
    return chain


def _only_branch(tree: Tree) -> tuple[Call, ...]:
    found = expression.branches(tree)
    if len(found) > 1:
        raise RequestRejected("it needs one answer, so '|' cannot be used")
    return found[0]


def _check_may_be_inside(name: str, outer: str) -> None:
    """Refuse a stage that runs others beside itself, or that hides what the rest shows.

    Raises:
        RequestRejected: the message names it.
    """
    found = get_approach(name).params if is_registered(name) else Params
    if name == outer or found.aside is not Params.aside:
        raise RequestRejected(f"{name!r} cannot run inside {outer!r}")
    if found.confidential:
        raise RequestRejected(f"{name!r} hides nothing inside {outer!r}: put it before, with '&'")


def _bad_params(name: str, model: type[Params], exc: ValidationError) -> RequestRejected:
    problems: list[str] = []
    for error in exc.errors():
        field_name = ".".join(str(part) for part in error["loc"])
        if error["type"] == "extra_forbidden":
            allowed = ", ".join(model.model_fields) or "none"
            problems.append(f"unknown parameter {field_name!r} (it accepts: {allowed})")
        else:
            place = f"{field_name}: " if field_name else ""
            problems.append(f"{place}{explain(error, model)}{shown(error['input'])}")
    return RequestRejected(f"{name}: {'; '.join(problems)}", param="optillm_params")
