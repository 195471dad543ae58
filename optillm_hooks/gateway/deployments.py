"""Deployments of LiteLLM's router: look-up by name, and recognition of our aliases."""

import sys
from types import ModuleType
from typing import Any

from litellm import Router

from optillm_hooks.gateway.model_names import PROVIDER


def proxy_module() -> ModuleType | None:
    """Return LiteLLM's module of the proxy that this process runs, or None outside a proxy."""
    return sys.modules.get("litellm.proxy.proxy_server")


def proxy_router() -> Router | None:
    """Return the router of the proxy that this process runs, or None outside a proxy."""
    return getattr(proxy_module(), "llm_router", None)


def deployments(router: Router, name: str) -> list[dict[str, Any]]:
    """Return the deployments that serve requests for `name`, those of a wildcard included."""
    return [dict(deployment) for deployment in router.get_model_list(model_name=name) or ()]


def is_configured(router: Router, name: str) -> bool:
    """Return whether the configuration has `name` itself, not only a wildcard that matches it."""
    return name in router.model_names or name in (router.model_group_alias or {})


def is_served(router: Router, name: str) -> bool:
    """Return whether any deployment serves `name`, also by a wildcard, its id, or for a team."""
    return (
        bool(deployments(router, name))
        or router.has_model_id(name)
        or name in router.team_public_model_names
    )


def alias_model(deployment: dict[str, Any]) -> str | None:
    """Return the `<expression>/<base>` of a deployment that is an alias of ours, else None."""
    params = deployment["litellm_params"]
    model = str(params.get("model", ""))
    if params.get("custom_llm_provider") == PROVIDER:
        return model.removeprefix(f"{PROVIDER}/")
    return model.removeprefix(f"{PROVIDER}/") if model.startswith(f"{PROVIDER}/") else None
