"""LiteLLM's tag-based routing: the tags of a request, as they apply to a plan's own calls.

The tags that have led the router to a deployment of an alias have done their work. They still
choose among deployments of a base model that know them, but do not exclude all of one without tags.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

from litellm import constants

from optillm_hooks.gateway.deployments import proxy_router

_KEY: Final[str | None] = getattr(constants, "ROUTING_REQUEST_TAGS_METADATA_KEY", None)
"""The entry in a call's metadata by which LiteLLM routes it, if there are tags."""


def problem() -> str | None:
    """Return why tags cannot be read with this version of LiteLLM."""
    if _KEY is not None:
        return None
    return (
        f"LiteLLM {version('litellm')} has no ROUTING_REQUEST_TAGS_METADATA_KEY: the tags of a "
        "request route the calls of its plan as well, to base models with these tags only"
    )


@dataclass(frozen=True, slots=True)
class RequestTags:
    requested: tuple[str, ...] = ()
    """The tags of the request, of its key and its team."""

    spent: frozenset[str] = frozenset()
    """Those that the deployment of the alias has too."""

    def metadata(self, deployments: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the entry in a call's metadata by which LiteLLM routes it.

        `deployments`: the `litellm_params` of those that the router chooses from.
        """
        if _KEY is None or not self.requested:
            return {}
        known = {tag for params in deployments for tag in params.get("tags") or ()}
        left = tuple(tag for tag in self.requested if tag in known or tag not in self.spent)
        return {_KEY: left}


def read_request_tags(metadata: Mapping[str, Any]) -> RequestTags:
    """Return the tags of a request from its metadata, once the router has chosen a deployment."""
    router, info = proxy_router(), metadata.get("model_info") or {}
    requested = tuple(metadata.get(_KEY or "") or ())
    if router is None or not requested:
        return RequestTags()
    deployment = router.get_deployment(model_id=str(info.get("id")))
    tags = () if deployment is None else getattr(deployment.litellm_params, "tags", None)
    return RequestTags(requested, frozenset(requested) & frozenset(tags or ()))
