"""Deployments of LiteLLM's router: look-up by name, and recognition of our aliases."""

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from litellm import BadRequestError, Router
from litellm.proxy._types import LitellmUserRoles, UserAPIKeyAuth
from litellm.proxy.auth.model_checks import (
    get_complete_model_list,
    get_key_models,
    get_team_models,
)

from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway.model_names import PROVIDER


def proxy_module() -> ModuleType | None:
    """Return LiteLLM's module of the proxy that this process runs, or None outside a proxy."""
    return sys.modules.get("litellm.proxy.proxy_server")


def proxy_router() -> Router | None:
    """Return the router of the proxy that this process runs, or None outside a proxy."""
    return getattr(proxy_module(), "llm_router", None)


def deployments(
    router: Router, name: str, key: UserAPIKeyAuth | None = None
) -> list[dict[str, Any]]:
    """Return the deployments that serve requests of `key` for `name`, those of a wildcard included.

    A team's models have a name that only its own keys know (`team_public_model_name`), and the keys
    of the proxy's admin. A name can also be a deployment's id.
    """
    team = None if key is None else key.team_id
    found: list[Any]
    if name not in router.model_names and router.has_model_id(name):
        found = [router.get_deployment(model_id=name).model_dump(exclude_none=True)]
    else:
        found = router.get_model_list(model_name=name, team_id=team) or []
    if not found and (target := router.get_model_from_alias(model=name)) is not None:
        found = router.get_model_list(model_name=target, team_id=team) or []
    if not _may_use_all_teams(key):
        found = [each for each in found if _owner(each) in (None, team)]
    elif not found:
        found = _of_any_team(router, name, key)
    return [dict(deployment) for deployment in found]


def _may_use_all_teams(key: UserAPIKeyAuth | None) -> bool:
    return key is not None and key.team_id is None and key.user_role == LitellmUserRoles.PROXY_ADMIN


def _owner(deployment: Mapping[str, Any]) -> str | None:
    """Return the team whose keys alone may use a deployment, or None."""
    owner: str | None = (deployment.get("model_info") or {}).get("team_id")
    return owner


def _of_any_team(router: Router, name: str, key: UserAPIKeyAuth | None) -> list[Any]:
    try:
        return list(router.deployments_for_request(name, {"metadata": {"user_api_key_auth": key}}))
    except BadRequestError as exc:  # several teams have a model of this name
        raise RequestRejected(str(exc.message), param="model") from None


def is_configured(router: Router, name: str, key: UserAPIKeyAuth | None = None) -> bool:
    """Return whether the configuration has `name` itself, not only a wildcard that matches it."""
    if name in router.model_names or name in (router.model_group_alias or {}):
        return True
    if _may_use_all_teams(key) and name in router.team_public_model_names:
        return True
    team = None if key is None else key.team_id
    return (team, name) in router.team_model_to_deployment_indices or router.has_model_id(name)


def names_for(router: Router, key: UserAPIKeyAuth) -> list[str]:
    """Return the models that `key` may call, as LiteLLM lists them to it, without wildcards."""
    configured = router.get_model_names(team_id=key.team_id)
    groups = router.get_model_access_groups()
    listed = get_complete_model_list(
        get_key_models(key, configured, groups),
        get_team_models(key.team_models, configured, groups),
        configured,
        user_model=None,
        infer_model_from_keys=False,
    )
    return [name for name in listed if "*" not in name and is_configured(router, name, key)]


def is_alias(deployment: Mapping[str, Any]) -> bool:
    """Return whether a deployment is an alias of ours, and not the wildcard for all plans."""
    model = alias_model(deployment)
    return model is not None and "*" not in model


def alias_model(deployment: Mapping[str, Any]) -> str | None:
    """Return the `<expression>/<base>` of a deployment that is an alias of ours, else None."""
    params = deployment["litellm_params"]
    model = str(params.get("model", ""))
    if params.get("custom_llm_provider") == PROVIDER:
        return model.removeprefix(f"{PROVIDER}/")
    return model.removeprefix(f"{PROVIDER}/") if model.startswith(f"{PROVIDER}/") else None
