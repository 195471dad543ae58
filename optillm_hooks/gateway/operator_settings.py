"""The operator's settings in LiteLLM's configuration, for all requests and for an alias."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Final, Generic, NamedTuple, TypeVar

import litellm
from pydantic import BaseModel, ValidationError

from optillm_hooks.errors import RequestRejected
from optillm_hooks.pipeline.plan import Plan
from optillm_hooks.settings import AliasSettings, LimitSettings, Settings, mistakes

S = TypeVar("S", bound=BaseModel)


class SettingsReader(Generic[S]):
    """Validates one entry of LiteLLM's configuration, and again only when it has changed.

    LiteLLM replaces the value when it reads its configuration again.
    """

    def __init__(self, model: type[S], where: str) -> None:
        self._model = model
        self._where = where
        self._raw: object = None
        self._settings: S | None = None

    def read(self, raw: object) -> S:
        """Return `raw` as settings.

        Raises:
            RequestRejected: they are not valid; the message names the key.
        """
        if self._settings is None or raw != self._raw:
            self._settings = _valid(self._model, raw or {}, self._where)
            self._raw = deepcopy(raw)  # a change in place must be noticed too
        return self._settings


_reader = SettingsReader(Settings, "optillm_settings")
_alias_readers: Final[dict[object, SettingsReader[AliasSettings]]] = {}
"""By the deployment's id in LiteLLM's router."""


def read_settings() -> Settings:
    """Return the operator's settings for all requests. Raises as `SettingsReader.read`."""
    return _reader.read(getattr(litellm, "optillm_settings", None))


def valid_settings(given: object) -> Settings:
    """Return `given`, the value of `optillm_settings`, as settings. Raises as `read_settings`."""
    return _valid(Settings, given or {}, "optillm_settings")


def alias_settings(deployment: Mapping[str, Any]) -> AliasSettings:
    """Return an alias's own settings from `model_info.optillm`.

    Raises:
        RequestRejected: they are not valid; the message names the key.
    """
    info = deployment.get("model_info") or {}
    reader = _alias_readers.setdefault(
        info.get("id"), SettingsReader(AliasSettings, "model_info.optillm")
    )
    return reader.read(info.get("optillm"))


def client_limits(given: object) -> LimitSettings:
    """Return the body field `optillm_limits` as limits. Raises as `alias_settings`."""
    return valid_limits(given or None, "optillm_limits")


def valid_limits(given: object, where: str) -> LimitSettings:
    """Return `given`, which was found at `where`, as limits. Raises as `alias_settings`."""
    return _valid(LimitSettings, {} if given is None else given, where)


class CallLimit(NamedTuple):
    """The maximum number of model calls that a plan may be estimated at."""

    max_calls: int
    setting: str
    """The operator's setting of this limit, for the error message."""

    def check(self, plan: Plan, n: int, *, decoded_remotely: bool = False) -> None:
        """Refuse `n` runs of a plan if they are estimated at more calls than the limit.

        `decoded_remotely`: whether the base model leaves decoding methods to us; see `Plan.calls`.

        Raises:
            RequestRejected: the message has both numbers and what to change.
        """
        calls = plan.calls(decoded_remotely=decoded_remotely)
        estimated = calls * n
        if estimated > self.max_calls:
            raise RequestRejected(
                f"this request is estimated at {estimated} model calls, but the maximum is "
                f"{self.max_calls}: ask for fewer samples, layers or choices (n), or have the "
                f"operator raise {self.setting}",
                param="n" if calls <= self.max_calls else "optillm_params",
            )


def call_limit(settings: Settings, *, by_operator: bool) -> CallLimit:
    """Return the limit for a plan written by the operator, or by a client.

    An alias that a client's parameters make more expensive counts as the client's plan.
    """
    if by_operator:
        return CallLimit(settings.plan_calls.alias, "optillm_settings.plan_calls.alias")
    return CallLimit(settings.plan_calls.client, "optillm_settings.plan_calls.client")


def tag_limit(settings: Settings) -> CallLimit:
    """Return the limit for one choice of a plan that a tag names."""
    return CallLimit(settings.plan_calls.tag, "optillm_settings.plan_calls.tag")


def _valid(model: type[S], value: object, where: str) -> S:
    try:
        return model.model_validate(value)
    except ValidationError as exc:
        problems = "; ".join(f"{at}: {text}" for at, text in mistakes(exc, model, where).items())
        raise RequestRejected(problems, param=where) from None
