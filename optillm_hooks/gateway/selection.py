"""Selects the approach, base model and settings of a request.

Sources of the approach, in order of precedence: body field, tag, prefix of the model name, alias,
the operator's default. The name of a configured model is never read as a prefix. OptiLLM's body
field `decoding` puts a decoder before the approach.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from litellm import Router

from optillm_hooks.budget import Limits
from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway import model_names
from optillm_hooks.gateway.deployments import alias_model, deployments, is_configured, is_served
from optillm_hooks.gateway.operator_settings import (
    CallLimit,
    alias_settings,
    call_limit,
    client_limits,
)
from optillm_hooks.gateway.tags import read_tags
from optillm_hooks.pipeline import expression
from optillm_hooks.pipeline.expression import Call, Chain, Parallel, Tree
from optillm_hooks.pipeline.optillm_names import (
    AUTO,
    PLUGINS,
    check_foreign_fields,
    check_own_fields,
    unknown_approach,
    unwrap_optillm_fields,
    unwrap_own_fields,
)
from optillm_hooks.pipeline.plan import PASS_THROUGH, Plan, resolve
from optillm_hooks.registry import Approach, all_approaches
from optillm_hooks.settings import AliasSettings, RunSettings, Settings

Form = Literal["body", "tag", "prefix"]
"""How a client names an approach."""

Source = Form | Literal["alias", "default"]
"""Where a plan comes from: one of the client's forms, or the operator's configuration."""

_OPERATOR_SOURCES: frozenset[Source] = frozenset({"alias", "default"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The plan that a request selects, before admission."""

    plan: Plan
    base: str
    source: Source
    settings: RunSettings
    limits: Limits
    calls: CallLimit
    requested: str
    """The model name that the client sent."""

    named: tuple[tuple[Form, tuple[Approach, ...]], ...] = ()
    """The approaches that the client named, by the form it used."""

    asked: Limits
    """The client's own limits, from `optillm_limits`; `limits` are no higher."""

    on_alias: bool
    alias_model: str | None = None
    """`<expression>/<base>` of the deployment from which an alias's plan and base were read."""

    given: Mapping[str, Mapping[str, object]] = field(default_factory=dict[str, Any])
    """Parameters that the client gives, by approach."""

    inherits_access: bool = False

    @property
    def deployment(self) -> str:
        """The model name under which LiteLLM routes the request to the provider."""
        return self.requested if self.on_alias else f"{model_names.PROVIDER}/{self.plan.label}"

    @property
    def passes_through(self) -> bool:
        """Whether LiteLLM alone can serve the request, from the base model."""
        return self.plan.passes_through and not self.on_alias and self.asked == Limits()

    @property
    def models(self) -> list[str]:
        """The model groups that the plan calls: the base, then those that parameters name."""
        return [self.base, *sorted(self.plan.model_groups - {self.base})]


class _OwnFields(NamedTuple):
    """Our request fields as the client sent them, and the approach named by a tag."""

    approach: object
    params: object
    limits: object
    decoding: object
    tag: str | None


@dataclass(frozen=True, slots=True)
class _Target:
    """The base model and approach that a requested model name stands for."""

    base: str
    expression: str | None = None
    source: Source = "default"
    alias: AliasSettings | None = None
    alias_model: str | None = None


def select(request: dict[str, Any], router: Router, settings: Settings) -> Selection | None:
    """Return the plan that `request` asks for, or None if it names no approach.

    Our own fields and the tags are removed from `request`, in place, in either case.

    Raises:
        RequestRejected: the request cannot be read, or tries to replace a locked approach.
    """
    requested, fields = request.get("model"), _take_own_fields(request)
    if not isinstance(requested, str):
        return None
    decoder = _decoder(fields.decoding)
    target = _target(requested, router, settings)
    text, source = _chosen(fields, decoder, target)
    if text is None:
        _check_unused_fields(fields)
        return None
    _check_lock(requested, target, "body" if decoder else source)
    _check_spelling(requested, target, router)
    tree = expression.parse(text, commas=source != "prefix")
    if decoder is not None:
        tree = _decoded(tree, decoder.name)
    given = _parameters(tree, fields.params, request)
    plan = resolve(tree, given=given, temperature=_temperature(request))
    by_operator = source in _OPERATOR_SOURCES and (
        not given or plan.expected_calls <= resolve(tree).expected_calls
    )
    calls = call_limit(settings, by_operator=by_operator)
    own = target.alias or settings
    asked = client_limits(fields.limits).limits()
    return Selection(
        plan=plan,
        base=target.base,
        source=source,
        settings=own,
        limits=own.limits().lowered(asked).with_max_calls(calls.max_calls),
        calls=calls,
        requested=requested,
        named=_named(plan, source, decoder),
        asked=asked,
        on_alias=target.alias is not None,
        alias_model=target.alias_model,
        given=given,
        inherits_access=target.alias is not None and target.alias.inherit_access,
    )


def names_approach(model: str, router: Router) -> bool:
    """Return whether a model name has an approach: an alias, or a name with a prefix."""
    if is_configured(router, model) and "*" not in model:
        return any(alias_model(deployment) for deployment in deployments(router, model))
    if model.startswith(f"{model_names.PROVIDER}/"):
        return True
    try:
        return model_names.from_prefix(model) is not None
    except RequestRejected:
        return False


def select_deployment(
    model: str,
    requested: str,
    params: Mapping[str, Any],
    settings: Settings,
    temperature: float | None,
) -> Selection:
    """Return the plan in the model name of a deployment, `<expression>/<base>`.

    Args:
        model: the deployment's model name.
        requested: its model group, as the client requested it.
        params: the deployment's parameters, with `model_info`.
        settings: the operator's settings for all requests.
        temperature: the client's temperature.

    Raises:
        RequestRejected: the name or the alias's settings are invalid.
    """
    named = model_names.from_deployment(model)
    alias = alias_settings(params)
    calls = call_limit(settings, by_operator=True)
    return Selection(
        plan=resolve(expression.parse(named.expression), temperature=temperature),
        base=named.base,
        source="alias",
        settings=alias,
        limits=alias.limits().with_max_calls(calls.max_calls),
        asked=Limits(),
        calls=calls,
        requested=requested,
        on_alias=True,
        inherits_access=alias.inherit_access,
    )


def on_deployment(
    selection: Selection, model: str, params: Mapping[str, Any], temperature: float | None
) -> Selection:
    """Return `selection` for the deployment of its alias that the router has chosen.

    Its base model, settings and, unless the client names another, plan are the deployment's own.
    Arguments as in `select_deployment`.

    Raises:
        RequestRejected: the name or the settings are invalid, or do not allow the client's plan.
    """
    if selection.alias_model in (None, model):
        return selection
    before, named = (model_names.from_deployment(name) for name in (selection.alias_model, model))
    alias, plan = alias_settings(params), selection.plan
    target = _Target(named.base, named.expression, "alias", alias, model)
    _check_lock(selection.requested, target, selection.source)
    if selection.source == "alias" and named.expression != before.expression:
        plan = resolve(
            expression.parse(named.expression), given=selection.given, temperature=temperature
        )
    return replace(
        selection,
        plan=plan,
        base=named.base,
        settings=alias,
        limits=alias.limits().lowered(selection.asked).with_max_calls(selection.calls.max_calls),
        alias_model=model,
        inherits_access=alias.inherit_access,
    )


def _named(
    plan: Plan, source: Source, decoder: Approach | None
) -> tuple[tuple[Form, tuple[Approach, ...]], ...]:
    named: list[tuple[Form, tuple[Approach, ...]]] = []
    if decoder is not None:
        named.append(("body", (decoder,)))
    if source != "alias" and source != "default":
        named.append((source, tuple(stage.approach for stage in plan.stages)))
    return tuple(named)


def _target(requested: str, router: Router, settings: Settings) -> _Target:
    if is_configured(router, requested) and "*" not in requested:
        found = deployments(router, requested)
        models = [alias_model(deployment) for deployment in found]
        if models and models[0] is not None:
            named = model_names.from_deployment(models[0])
            settings_of = alias_settings(found[0])
            return _Target(named.base, named.expression, "alias", settings_of, models[0])
        return _Target(requested, settings.default_approach)
    if requested.startswith(f"{model_names.PROVIDER}/"):
        named = model_names.from_deployment(requested)
        return _Target(named.base, named.expression, "prefix")
    prefixed = model_names.from_prefix(requested)
    if prefixed is None:
        _refuse_unknown_prefix(requested, router)
        return _Target(requested, settings.default_approach)
    return _Target(prefixed.base, prefixed.expression, "prefix")


def _refuse_unknown_prefix(requested: str, router: Router) -> None:
    """Refuse `foo-gpt-4o` where `gpt-4o` is configured and nothing serves the whole name.

    A known approach with dashes in its name is recognised too.
    """
    if is_served(router, requested):
        return
    for name in (approach.name for approach in all_approaches() if "_" in approach.name):
        base = requested[len(name) + 1 :]
        if requested == f"{name.replace('_', '-')}-{base}" and is_configured(router, base):
            raise RequestRejected(
                f"model {requested!r}: did you mean '{name}-{base}'?", param="model"
            )
    slug, dash, rest = requested.partition("-")
    is_prefix = slug in PLUGINS or is_configured(router, rest)
    if dash and is_prefix:
        raise RequestRejected(f"model {requested!r}: {unknown_approach(slug)}", param="model")


def _take_own_fields(request: dict[str, Any]) -> _OwnFields:
    """Return our own fields and the tag of a request, and remove them from it.

    Raises:
        RequestRejected: a field of ours is misspelt.
    """
    unwrap_own_fields(request)
    check_own_fields(request)
    tagged = read_tags(request)
    if tagged.changed:
        request.update(tagged.changed)
    approach = request.pop("optillm_approach", None)
    return _OwnFields(
        approach=None if approach == AUTO else approach,
        params=request.pop("optillm_params", None),
        limits=request.pop("optillm_limits", None),
        decoding=request.pop("decoding", None),
        tag=None if tagged.approach == AUTO else tagged.approach,
    )


def _chosen(
    fields: _OwnFields, decoder: Approach | None, target: _Target
) -> tuple[str | None, Source]:
    """Return the approach expression to run, or None, and its source."""
    if fields.approach is not None:
        if not isinstance(fields.approach, str):
            raise RequestRejected("optillm_approach must be a string", param="optillm_approach")
        return fields.approach, "body"
    if fields.tag is not None:
        return fields.tag, "tag"
    if target.expression is None and decoder is not None:
        return PASS_THROUGH, "body"
    return target.expression, target.source


def _check_unused_fields(fields: _OwnFields) -> None:
    """Refuse parameters and limits without an approach; empty ones ask for nothing."""
    if fields.params not in (None, {}) or fields.limits not in (None, {}):
        raise RequestRejected(
            "optillm_params and optillm_limits need an approach to apply to",
            param="optillm_params",
        )


def _decoder(name: object) -> Approach | None:
    """Return the decoder that the body field `decoding` names; None if it is left out."""
    if name is None:
        return None
    known = {found.name: found for found in all_approaches() if found.kind == "decoder"}
    if not isinstance(name, str) or name not in known:
        raise RequestRejected(
            f"unknown decoding {str(name)[:80]!r}; known: {', '.join(known)}", param="decoding"
        )
    return known[name]


def _decoded(tree: Tree, decoder: str) -> Tree:
    """Return `tree` with `decoder` before each branch that lacks it; it replaces `none`.

    OptiLLM itself cannot combine a decoding method with an approach.
    """
    if isinstance(tree, Parallel):
        return Parallel(tuple(_decoded_branch(branch, decoder) for branch in tree.branches))
    return _decoded_branch(tree, decoder)


def _decoded_branch(branch: Call | Chain, decoder: str) -> Call | Chain:
    stages = branch.stages if isinstance(branch, Chain) else (branch,)
    if [stage.name for stage in stages if isinstance(stage, Call)] == [PASS_THROUGH]:
        return Call(decoder)
    if any(isinstance(stage, Call) and stage.name == decoder for stage in stages):
        return branch
    return Chain((Call(decoder), *stages))


def _check_lock(requested: str, target: _Target, source: Source) -> None:
    """Refuse to replace the approach of a locked alias, or to put a decoder before it."""
    if target.alias is not None and target.alias.locked and source != "alias":
        raise RequestRejected(
            f"the model {requested!r} is locked to its approach; remove the one in the {source}",
            param="optillm_approach",
        )


def _check_spelling(requested: str, target: _Target, router: Router) -> None:
    """Refuse a model name that can only be a mistake: with a comma, or with two approaches."""
    if target.source == "prefix" and "," in requested:
        raise RequestRejected(
            "a comma in a model name asks LiteLLM for several models, which cannot be combined "
            "with an approach; separate parameters by ';'",
            param="model",
        )
    if not is_configured(router, target.base):
        model_names.refuse_second_prefix(model_names.Named(target.expression or "", target.base))


def _given(params: object) -> dict[str, dict[str, object]]:
    if params is None:
        return {}
    if not isinstance(params, dict) or not all(isinstance(v or {}, dict) for v in params.values()):
        raise RequestRejected(
            'optillm_params must be an object of objects, such as {"bon": {"n": 5}}',
            param="optillm_params",
        )
    return {str(name): dict(values or {}) for name, values in params.items()}


def _temperature(request: Mapping[str, Any]) -> float | None:
    temperature = request.get("temperature")
    return float(temperature) if isinstance(temperature, int | float) else None


def _parameters(tree: Tree, params: object, request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the parameters in a request by approach, and remove their body fields from it.

    OptiLLM's clients send some parameters as body fields. They apply only to approaches in `tree`;
    fields that OptiLLM does not know belong to the provider. `optillm_params` overrides them.

    Raises:
        RequestRejected: a field of OptiLLM that no approach in `tree` reads.
    """
    unwrap_optillm_fields(request)
    given = _given(params)
    called = {call.name for branch in expression.branches(tree) for call in branch}
    approaches = [approach for approach in all_approaches() if approach.name in called]
    for approach in approaches:
        for sent, name in approach.params.request_fields().items():
            if request.get(sent) is not None:
                given.setdefault(approach.name, {}).setdefault(name, request[sent])
    for approach in approaches:
        for sent in approach.params.request_fields():
            request.pop(sent, None)
    check_foreign_fields(request, sorted(called))
    return given
