"""Selects the approach, base model and settings of a request.

Sources of the approach, in order of precedence: body field, prefix of the model name, alias, tag,
the operator's default. So a text replaces nothing that a client or the operator has chosen. The
name of a configured model is never read as a prefix. OptiLLM's body field `decoding` puts a decoder
before the approach.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from litellm import Router
from litellm.proxy._types import UserAPIKeyAuth

from optillm_hooks.budget import Limits
from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway import model_names
from optillm_hooks.gateway.call_fields import counts_choices
from optillm_hooks.gateway.deployments import (
    alias_model,
    deployments,
    is_alias,
    is_configured,
)
from optillm_hooks.gateway.operator_settings import (
    CallLimit,
    alias_settings,
    call_limit,
    client_limits,
    tag_limit,
)
from optillm_hooks.pipeline import expression
from optillm_hooks.pipeline.expression import Call, Chain, Parallel, Tree
from optillm_hooks.pipeline.optillm_names import (
    AUTO,
    PLUGINS,
    check_foreign_fields,
    check_own_fields,
    is_optillm_field,
    unknown_approach,
    unwrap_optillm_fields,
    unwrap_own_fields,
)
from optillm_hooks.pipeline.plan import PASS_THROUGH, Plan, resolve
from optillm_hooks.registry import Approach, all_approaches
from optillm_hooks.settings import AliasSettings, RunSettings, Settings
from optillm_hooks.types import has_more_entries

Form = Literal["body", "tag", "prefix"]
"""How a client names an approach."""

Source = Form | Literal["alias", "default"]
"""Where a plan comes from: one of the client's forms, or the operator's configuration."""

_OPERATOR_SOURCES: frozenset[Source] = frozenset({"alias", "default"})

_MAX_ENTRIES = 1000
"""Maximum entries of a client's parameters or limits, on all levels together."""


_DRY_RUN = "dry_run"
_DRY_RUN_HEADER = "x-optillm-dry-run"
_SWITCH = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The plan that a request selects, before admission."""

    plan: Plan
    base: str
    """The base model by the name that the client or the operator has written."""

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

    of_key: Limits = field(default_factory=Limits)
    """The ceilings of the caller's key and team; `limits` are no higher once admitted."""

    on_alias: bool
    deployment_id: str | None = None
    """The deployment from which an alias's plan, base and settings were read."""

    given: Mapping[str, Mapping[str, object]] = field(default_factory=dict[str, Any])
    """Parameters that the client gives, by approach."""

    inherits_access: bool = False
    dry_run: bool = False
    """Whether the client wants the plan only, without any call of a model."""

    called: Mapping[str, str] = field(default_factory=dict[str, str])
    """The models that aliases of the key put in place of those that the plan names."""

    @property
    def called_base(self) -> str:
        """The base model as it is called for the key."""
        return self.called.get(self.base, self.base)

    @property
    def called_by_parameters(self) -> list[str]:
        """The models that parameters name, as they are called for the key."""
        return sorted({self.called.get(name, name) for name in self.plan.model_groups})

    @property
    def is_aliass_own(self) -> bool:
        """Whether the request asks for nothing but an alias, as it is."""
        asks = self.given or self.dry_run or self.asked != Limits()
        return self.source == "alias" and not asks

    @property
    def deployment(self) -> str:
        """The model name under which LiteLLM routes the request to the provider."""
        return self.requested if self.on_alias else f"{model_names.PROVIDER}/{self.plan.label}"

    @property
    def passes_through(self) -> bool:
        """Whether LiteLLM alone can serve the request, from the base model."""
        ours = self.on_alias or self.dry_run or self.asked != Limits()
        return self.plan.passes_through and not ours

    @property
    def models(self) -> list[str]:
        """The model groups that the plan calls: the base, then those that parameters name."""
        base = self.called_base
        return [base, *(name for name in self.called_by_parameters if name != base)]


class _OwnFields(NamedTuple):
    """Our request fields as the client sent them."""

    approach: object
    params: object
    limits: object
    decoding: object
    dry_run: bool


@dataclass(frozen=True, slots=True)
class _Target:
    """The base model and approach that a requested model name stands for."""

    base: str
    expression: str | None = None
    source: Source = "default"
    alias: AliasSettings | None = None
    deployment_id: str | None = None


def select(
    request: dict[str, Any],
    router: Router,
    settings: Settings,
    *,
    key: UserAPIKeyAuth | None = None,
    tag: str | None = None,
    deployment: Mapping[str, Any] | None = None,
) -> Selection | None:
    """Return the plan that `request` asks for, or None if it names no approach.

    Our own fields are removed from `request`, in place, in either case.

    Args:
        request: the client's request.
        router: the proxy's router.
        settings: the operator's settings for all requests.
        key: the caller's key, on which it depends what a model name means.
        tag: the approach that a tag in the request names.
        deployment: the one to run, if the request is for an alias; else it is any of the alias's.

    Raises:
        RequestRejected: the request cannot be read, or tries to replace a locked approach.
    """
    requested, fields = request.get("model"), _take_own_fields(request)
    if not isinstance(requested, str):
        return None
    decoder = _decoder(fields.decoding)
    target = _target(requested, router, settings, key, deployment)
    text, source = _chosen(fields, decoder, target, tag)
    if text is None:
        _check_unused_fields(fields)
        return None
    _check_lock(requested, target, "body" if decoder else source)
    _check_commas(requested, target)
    tree = expression.parse(text, commas=source != "prefix")
    if source == "tag":
        _check_tag(tree, settings)
    if decoder is not None:
        tree = _decoded(tree, decoder.name)
    given = _parameters(tree, fields.params, request)
    plan = resolve(tree, given=given, temperature=_temperature(request), presets=settings.presets)
    calls = _calls(plan, tree, source, given, settings)
    own: RunSettings = target.alias or settings
    if source == "tag":  # the text of a stranger must not make the request fail
        own = own.model_copy(update={"on_error": "plain"})
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
        deployment_id=target.deployment_id,
        given=given,
        inherits_access=target.alias is not None and target.alias.inherit_access,
        dry_run=fields.dry_run,
    )


def names_approach(model: str, router: Router, key: UserAPIKeyAuth) -> bool:
    """Return whether a model name has an approach: an alias, or a name with a prefix."""
    if is_configured(router, model, key) and "*" not in model:
        return any(map(is_alias, deployments(router, model, key)))
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
        plan=resolve(
            expression.parse(named.expression), temperature=temperature, presets=settings.presets
        ),
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
    selection: Selection,
    model: str,
    params: Mapping[str, Any],
    settings: Settings,
    temperature: float | None,
) -> Selection:
    """Return `selection` for the deployment of its alias that the router has chosen.

    Its base model, settings and, unless the client names another, plan are the deployment's own.
    Arguments as in `select_deployment`.

    Raises:
        RequestRejected: the name or the settings are invalid, or do not allow the client's plan.
    """
    if not selection.on_alias:
        return selection
    alias = alias_settings(params)  # LiteLLM gives deployments that differ in these only one id
    if selection.deployment_id == deployment_id(params) and selection.settings == alias:
        return selection
    named = model_names.from_deployment(model)
    target = _Target(named.base, named.expression, "alias", alias, deployment_id(params))
    _check_lock(selection.requested, target, selection.source)
    plan, calls = selection.plan, selection.calls
    if selection.source == "alias":
        tree = expression.parse(named.expression)
        plan = resolve(
            tree, given=selection.given, temperature=temperature, presets=settings.presets
        )
        calls = _calls(plan, tree, selection.source, selection.given, settings)
    return replace(
        selection,
        plan=plan,
        base=named.base,
        settings=alias,
        limits=alias.limits()
        .lowered(selection.asked)
        .lowered(selection.of_key)
        .with_max_calls(calls.max_calls),
        calls=calls,
        deployment_id=target.deployment_id,
        inherits_access=alias.inherit_access,
    )


def deployment_id(deployment: Mapping[str, Any]) -> str | None:
    """Return LiteLLM's id of a deployment, or of the one whose parameters these are."""
    found: str | None = (deployment.get("model_info") or {}).get("id")
    return found


def _named(
    plan: Plan, source: Source, decoder: Approach | None
) -> tuple[tuple[Form, tuple[Approach, ...]], ...]:
    named: list[tuple[Form, tuple[Approach, ...]]] = []
    if decoder is not None:
        named.append(("body", (decoder,)))
    if source != "alias" and source != "default":
        named.append((source, tuple(stage.approach for stage in plan.stages)))
    return tuple(named)


def _target(
    requested: str,
    router: Router,
    settings: Settings,
    key: UserAPIKeyAuth | None,
    deployment: Mapping[str, Any] | None,
) -> _Target:
    if is_configured(router, requested, key) and "*" not in requested:
        found = deployment or next(filter(is_alias, deployments(router, requested, key)), None)
        if found is None:
            return _Target(requested, settings.default_approach)
        named = model_names.from_deployment(str(alias_model(found)))
        own = alias_settings(found)
        return _Target(named.base, named.expression, "alias", own, deployment_id(found))
    if requested.startswith(f"{model_names.PROVIDER}/"):
        named = model_names.from_deployment(requested)
        return _Target(named.base, named.expression, "prefix")
    prefixed = model_names.from_prefix(requested)
    if prefixed is None:
        return _Target(requested, settings.default_approach)
    return _Target(prefixed.base, prefixed.expression, "prefix")


class UnknownPrefix(NamedTuple):
    """A model name that nothing serves, and whose end is the name of a model."""

    base: str
    error: RequestRejected


def is_served(requested: str, router: Router, key: UserAPIKeyAuth | None = None) -> bool:
    """Return whether a deployment has this name, or it is a known approach before a model's."""
    return bool(
        deployments(router, requested, key) or model_names.from_prefix(requested) is not None
    )


def unknown_prefix(
    requested: str, router: Router, key: UserAPIKeyAuth | None = None
) -> UnknownPrefix | None:
    """Return the mistake in `foo-gpt-4o`, which nothing serves, if `gpt-4o` is configured.

    A known approach with dashes in its name is recognised too. Whoever may not call the base must
    not learn by this error that it exists.
    """
    for name in (approach.name for approach in all_approaches() if "_" in approach.name):
        base = requested[len(name) + 1 :]
        if requested == f"{name.replace('_', '-')}-{base}" and is_configured(router, base, key):
            hint = f"model {requested!r}: did you mean '{name}-{base}'?"
            return UnknownPrefix(base, RequestRejected(hint, param="model"))
    slug, dash, base = requested.partition("-")
    if dash and (slug in PLUGINS or is_configured(router, base, key)):
        hint = f"model {requested!r}: {unknown_approach(slug)}"
        return UnknownPrefix(base, RequestRejected(hint, param="model"))
    return None


def _take_own_fields(request: dict[str, Any]) -> _OwnFields:
    """Return our own fields of a request, and remove them from it.

    Raises:
        RequestRejected: a field of ours is misspelt.
    """
    unwrap_own_fields(request)
    check_own_fields(request)
    _check_size(request.get("optillm_limits"), "optillm_limits")
    approach = request.pop("optillm_approach", None)
    params = request.pop("optillm_params", None)
    dry_run = _asks_for_dry_run(request, params)
    if isinstance(params, dict):
        params = {name: value for name, value in params.items() if name != _DRY_RUN}
    return _OwnFields(
        approach=None if approach == AUTO else approach,
        params=params,
        limits=request.pop("optillm_limits", None),
        decoding=request.pop("decoding", None),
        dry_run=dry_run,
    )


def _asks_for_dry_run(request: Mapping[str, Any], params: object) -> bool:
    """Return whether a request asks for its plan only, in `optillm_params` or by a header.

    Raises:
        RequestRejected: what it says is neither yes nor no; a call would cost money.
    """
    headers = (request.get("proxy_server_request") or {}).get("headers") or {}
    told = str(headers.get(_DRY_RUN_HEADER, "false")).strip().lower()
    asked = params.get(_DRY_RUN, False) if isinstance(params, dict) else False
    if told not in _SWITCH or not isinstance(asked, bool):
        raise RequestRejected(
            f"dry_run in optillm_params, and the header {_DRY_RUN_HEADER}, must be true or false",
            param="optillm_params",
        )
    return asked or _SWITCH[told]


def _chosen(
    fields: _OwnFields, decoder: Approach | None, target: _Target, tag: str | None
) -> tuple[str | None, Source]:
    """Return the approach expression to run, or None, and its source.

    Raises:
        RequestRejected: it cannot be read, or there is a tag beside something stronger.
    """
    if tag is not None and (fields.approach is not None or target.source != "default"):
        raise RequestRejected("a tag names an approach only where nothing else does")
    if fields.approach is not None:
        if not isinstance(fields.approach, str):
            raise RequestRejected("optillm_approach must be a string", param="optillm_approach")
        return fields.approach, "body"
    if tag is not None:
        return tag, "tag"
    if target.expression is None and decoder is not None:
        return PASS_THROUGH, "body"
    return target.expression, target.source


def _check_unused_fields(fields: _OwnFields) -> None:
    """Refuse parameters, limits and a dry run without an approach; empty ones ask for nothing."""
    if fields.dry_run:
        raise RequestRejected(
            "a dry run shows the plan of an approach, and this request names none",
            param="optillm_params",
        )
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


def _check_tag(tree: Tree, settings: Settings) -> None:
    """Refuse what a text could make a stranger pay for, or send to another model.

    Raises:
        RequestRejected: the tag sets parameters, asks for several answers, or costs too much.
    """
    branches = list(expression.branches(tree))
    may_set = settings.forms.tag_parameters
    if len(branches) > 1:
        raise RequestRejected("a tag cannot ask for several answers")
    if may_set == "none" and any(call.args for branch in branches for call in branch):
        raise RequestRejected("a tag may not set parameters on this proxy")
    plan = resolve(tree, presets=settings.presets)
    if may_set != "models" and plan.model_groups:
        raise RequestRejected("a tag may not name models on this proxy")
    tag_limit(settings).check(plan, 1)


def _calls(
    plan: Plan,
    tree: Tree,
    source: Source,
    given: Mapping[str, Mapping[str, object]],
    settings: Settings,
) -> CallLimit:
    """Return the limit of a plan; a client's parameters may make an alias its own plan."""
    by_operator = source in _OPERATOR_SOURCES and (
        not given or plan.expected_calls <= resolve(tree, presets=settings.presets).expected_calls
    )
    return call_limit(settings, by_operator=by_operator)


def _check_commas(requested: str, target: _Target) -> None:
    """Refuse a model name with a comma, which can only be a mistake."""
    if target.source == "prefix" and "," in requested:
        raise RequestRejected(
            "a comma in a model name asks LiteLLM for several models, which cannot be combined "
            "with an approach; separate parameters by ';'",
            param="model",
        )


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
        RequestRejected: a field of OptiLLM that no approach in `tree` reads. A plugin file may
            read any.
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
    plugins = [approach.name for approach in approaches if approach.params.reads_any_field]
    if plugins:
        _take_fields_of_plugins(request, plugins, given)
    else:
        check_foreign_fields(request, sorted(called))
    _check_size(given, "optillm_params")
    return given


def _take_fields_of_plugins(
    request: dict[str, Any], plugins: Sequence[str], given: dict[str, dict[str, Any]]
) -> None:
    """Move the fields that no provider may get to the parameters of plugin files.

    Those are OptiLLM's own, and those that a provider would read as a number of choices. A plugin
    finds all other fields among the client's.
    """
    for name in [name for name in request if is_optillm_field(name) or counts_choices(name)]:
        if name != "n" and (value := request.pop(name)) is not None:
            for plugin in plugins:
                given.setdefault(plugin, {}).setdefault(name, value)


def _check_size(value: object, field: str) -> None:
    """Refuse a value of many entries: each may be an error that the message would name.

    Raises:
        RequestRejected: the message names `field`.
    """
    if has_more_entries(value, _MAX_ENTRIES):
        raise RequestRejected(f"{field}: at most {_MAX_ENTRIES} entries are allowed", param=field)
