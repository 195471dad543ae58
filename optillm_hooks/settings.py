"""The operator's settings in YAML, as frozen pydantic models. An unknown key is an error."""

import os
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from optillm_hooks.budget import Limits
from optillm_hooks.code_execution.runner import RunnerName
from optillm_hooks.packages import AllowedPackages
from optillm_hooks.policies import read_policy
from optillm_hooks.registry import Approach
from optillm_hooks.wrong_values import wrong_value

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


_ABSOLUTE: Final = r"^/[^/\x00][^\x00]*$"


def explain(error: "ErrorDetails", model: type[BaseModel]) -> str:
    """Return an error of pydantic about `model` in words that say what to write instead."""
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] == _ABSOLUTE:
        return "must be an absolute path"
    if error["type"] != "extra_forbidden":
        return wrong_value(error)
    owner: Any = model
    for part in error["loc"][:-1]:
        of_named = get_origin(owner) is dict
        owner = get_args(owner)[1] if of_named else _without_none(owner.model_fields[part])
    known = list(owner.model_fields)
    return f"unknown setting{meant(str(error['loc'][-1]), known)} (known: {', '.join(known)})"


def _without_none(field: FieldInfo) -> Any:
    """Return the type of a field; of an optional one, the type of what may be given."""
    given = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    return given[0] if isinstance(field.annotation, UnionType) else field.annotation


_SECRET = re.compile(r"(?:url|token|key|secret|password)$")
"""Names of settings whose values no text shows."""

_UNTOLD = frozenset({"extra_forbidden", "model_type", "model_attributes_type", "dict_type"})
"""Errors that leave out the value: what stands in place of settings may be their URL or token."""


def mistakes(exc: ValidationError, model: type[BaseModel], place: str) -> dict[str, str]:
    """Return what is wrong by where it is, such as `optillm_settings.forms.tag`.

    `place` is where the value of `model` was found.
    """
    found: dict[str, list[str]] = {}
    values: dict[str, str] = {}
    for error in exc.errors():
        path = place
        for part in error["loc"]:
            if isinstance(part, int):
                path += f"[{part}]"
            elif "[" not in part:  # pydantic's name of a member of a union
                path += f".{part}"
        found.setdefault(path, []).append(explain(error, model))
        if error["type"] not in _UNTOLD:
            values[path] = shown(error["input"], path)
    return {path: " or ".join(texts) + values.get(path, "") for path, texts in found.items()}


def shown(value: object, path: str = "") -> str:
    """Return a wrong value for an error message; empty if it is long, no scalar, or a secret."""
    is_short = isinstance(value, int | float | str) and len(str(value)) < 64
    return f", got {value!r}" if is_short and not _SECRET.search(path) else ""


def meant(name: str, known: Iterable[str]) -> str:
    """Return the question whether a similar name was meant, to be put after `name`; or nothing."""
    close = get_close_matches(name.lower(), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


Presets = Mapping[str, Mapping[str, Mapping[str, object]]]
"""Parameters by approach, and by the name of a preset of the operator's."""


class LimitSettings(_Settings):
    """What one request may spend."""

    deadline_s: float | None = Field(default=None, gt=0, description="Seconds until the answer.")
    max_calls: int | None = Field(default=None, ge=1, description="Model calls.")
    max_tokens_total: int | None = Field(
        default=None, ge=1, description="Prompt and completion tokens of all calls."
    )
    max_cost_usd: float | None = Field(default=None, gt=0, description="US dollars of all calls.")
    max_parallel: int | None = Field(default=None, ge=1, description="Concurrent model calls.")

    def limits(self) -> Limits:
        """Return these settings as the `Limits` of a budget."""
        return Limits(
            deadline_s=self.deadline_s,
            max_calls=self.max_calls,
            max_tokens_total=self.max_tokens_total,
            max_cost_usd=self.max_cost_usd,
            max_parallel=self.max_parallel,
        )


class RunSettings(LimitSettings):
    """How requests are run, besides their approach."""

    on_error: Literal["error", "plain"] = Field(
        default="error",
        description="What a failed approach results in: its error, or a plain call.",
    )
    progress: bool = Field(
        default=False, description="Tell streaming clients what is being done, as reasoning deltas."
    )
    # YAML reads a bare off as false.
    code_runner: Annotated[RunnerName, BeforeValidator(lambda v: v or "off")] = Field(
        default="off",
        description="Where to run programs that a model or a user wrote: nowhere, in Monty, in "
        "Bubblewrap, or in a sandbox of LiteLLM's.",
    )


class ShadowSettings(_Settings):
    """Another approach that runs beside some requests of a model, after their answers."""

    approach: str = Field(
        min_length=1, max_length=1000, description="The other approach; none is a plain call."
    )
    share: float = Field(gt=0, le=1, description="Share of the requests, chosen by chance.")
    judge: str | None = Field(
        default=None, description="Model group that says blindly which answer is better."
    )
    check: Literal["auto", "number", "choice", "exact"] | None = Field(
        default=None,
        description="Compare the final answers, of this kind, instead of asking a judge.",
    )

    @model_validator(mode="after")
    def _has_one_way(self) -> Self:
        if (self.judge is None) == (self.check is None):
            raise ValueError("must have either judge or check")
        return self


_SHADOW = Field(
    default=None, description="Another approach that runs beside some requests, unseen by users."
)


class AliasSettings(RunSettings):
    """`model_info.optillm` of a deployment that is an alias."""

    shadow: ShadowSettings | None = _SHADOW

    locked: bool = Field(
        default=False, description="Refuse a body field that replaces the approach."
    )
    inherit_access: bool = Field(
        default=False,
        description="Let a key that may call the alias use its base model through it.",
    )


class DeploymentSettings(_Settings):
    """`model_info.optillm` of an ordinary deployment: what LiteLLM does not know about it."""

    shadow: ShadowSettings | None = _SHADOW
    continues_prefix: bool = Field(
        default=False,
        description="Whether it continues a final assistant message (continue_final_message, as "
        "vLLM and SGLang do) and returns top_logprobs.",
    )


NamedApproaches = Literal["all", "safe", "none"] | tuple[str, ...]
"""The approaches that a form may name; `safe` are those that only call models."""


TagParameters = Literal["none", "values", "models"]
"""The parameters that a tag may set; `values` are those that name no model."""


class Forms(_Settings):
    """The approaches that clients may name, by form."""

    body: NamedApproaches = "all"
    tag: NamedApproaches = "safe"
    prefix: NamedApproaches = "all"
    tag_parameters: TagParameters = "none"


class PlanCalls(_Settings):
    """The maximum number of model calls that a plan may be estimated at, by who wrote it."""

    alias: int = Field(default=256, ge=1, description="In an alias, or the default approach.")
    client: int = Field(default=64, ge=1, description="In a request: prefix, tag or body field.")
    tag: int = Field(default=10, ge=1, description="In a tag, for each choice (n).")


class WebSettings(_Settings):
    """How approaches reach the web."""

    fetch: bool = Field(
        default=True, description="Read public web pages, if the extra `web` is installed."
    )
    allowed_hosts: tuple[str, ...] | None = Field(
        default=None,
        description="The only hosts that are read, with their subdomains; unset: all public ones.",
    )
    denied_hosts: tuple[str, ...] = Field(
        default=(), description="Hosts that are not read, with their subdomains."
    )
    timeout_s: float = Field(
        default=20.0, gt=0, le=600, description="Seconds for one page, or for one search."
    )
    max_bytes: int = Field(
        default=4 << 20,
        ge=1024,
        le=64 << 20,
        description="Bytes that are read of one page; the rest is cut off.",
    )
    cache_s: float = Field(
        default=300.0,
        ge=0,
        description="Seconds for which a page that a key has read is not read again.",
    )
    search_tool: str | None = Field(
        default=None,
        description="The `search_tool_name` of LiteLLM's search tool; unset: the first one.",
    )


class MontyOptions(_Settings):
    """Limits of `code_runner: monty`."""

    seconds: float = Field(default=4.0, gt=0, le=60, description="Seconds per snippet.")
    memory_mb: int = Field(default=256, ge=16, le=16_384, description="Memory in MiB.")


AbsolutePath = Annotated[str, Field(pattern=_ABSOLUTE, max_length=4096)]


class BubblewrapOptions(_Settings):
    """Limits of `code_runner: bubblewrap`, and what its programs can read."""

    seconds: float = Field(default=10.0, gt=0, le=600, description="Seconds per snippet.")
    memory_mb: int = Field(default=1024, ge=64, le=65_536, description="Address space in MiB.")
    python: AbsolutePath | None = Field(
        default=None,
        description="The interpreter, which brings its own packages; unset, the one below the "
        "proxy's virtual environment.",
    )
    binds: tuple[AbsolutePath, ...] = Field(
        default=(), max_length=32, description="Further paths that programs can read."
    )


class SandboxOptions(_Settings):
    """Which sandbox `code_runner: litellm` uses."""

    sandbox_tool: str = Field(
        default="", description="`sandbox_tool_name` of an entry of LiteLLM's `sandbox_tools`."
    )
    template: str | None = Field(
        default=None, description="The provider's template or image; unset, LiteLLM's default."
    )
    seconds: float = Field(
        default=30.0, gt=0, le=600, description="Seconds per snippet, and for the start."
    )


class CodeRunnerOptions(_Settings):
    """Options of the code runners. Only the operator's file sets them, never an alias: they decide
    which files of the host a program can read."""

    monty: MontyOptions = Field(default_factory=MontyOptions)
    bubblewrap: BubblewrapOptions = Field(default_factory=BubblewrapOptions)
    litellm: SandboxOptions = Field(default_factory=SandboxOptions)


class MemorySettings(_Settings):
    """What `memory` may use besides models."""

    store: bool = Field(
        default=False,
        description="Keep the notes of what was read, for later requests of the same key, team or "
        "user.",
    )
    ttl_s: float | None = Field(
        default=30 * 86_400.0,
        gt=0,
        description="Seconds after which a note is deleted; null keeps it.",
    )
    embedding_model: str | None = Field(
        default=None,
        description="A model group of embeddings, which ranks notes beside their words. The caller "
        "pays.",
    )


class StoreSettings(_Settings):
    """Where stages keep what outlasts a request."""

    directory: str | None = Field(
        default=None,
        description="Folder of the SQLite file, on a local disk; unset, the user's data folder.",
    )
    url: str | None = Field(
        default=None,
        description="A PostgreSQL database instead (postgresql://user@host/name), for several "
        "workers or hosts.",
    )

    @field_validator("url")
    @classmethod
    def _of_postgresql(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if not url.startswith(("postgres://", "postgresql://", "postgresql+psycopg://")):
            raise ValueError("must begin with postgresql://")  # without the URL: it has a password
        if find_spec("psycopg") is None:
            raise ValueError("needs the extra `postgres`: pip install 'optillm-hooks[postgres]'")
        return url


class PrivacySettings(_Settings):
    """How the approach `privacy` finds private values."""

    detectors: tuple[str, ...] | None = Field(
        default=None,
        max_length=8,
        description="Detectors besides the built-in ones: `presidio_service` (a Presidio analyzer "
        "over HTTP), `presidio` (the extra `privacy`, in the proxy's process), or names of the "
        "entry point group `optillm_hooks.detectors`. Unset: `presidio_service` where "
        "`PRESIDIO_ANALYZER_API_BASE` is set.",
    )
    presidio_url: str | None = Field(
        default=None,
        description="Address of the Presidio analyzer; unset: the environment variable "
        "`PRESIDIO_ANALYZER_API_BASE`.",
    )
    presidio_entities: tuple[str, ...] = Field(
        default=("PERSON", "LOCATION", "ORGANIZATION", "US_SSN", "US_PASSPORT", "UK_NHS", "CRYPTO"),
        min_length=1,
        max_length=64,
        description="What Presidio looks for. Not dates and plain numbers: models need them.",
    )
    language: str = Field(
        default="en", pattern="^[a-z]{2}$", description="Language that Presidio reads."
    )
    spacy_model: str = Field(
        default="en_core_web_lg",
        description="The installed spaCy model of `presidio`. It is never downloaded.",
    )
    score: float = Field(
        default=0.5, ge=0, le=1, description="Presidio's lowest score that counts."
    )
    entities: tuple[str, ...] | None = Field(
        default=None, max_length=64, description="Kinds of values to replace; unset: all."
    )
    allow: tuple[str, ...] = Field(
        default=(), max_length=1000, description="Values that are not private, such as your own."
    )
    deny: tuple[str, ...] = Field(
        default=(), max_length=1000, description="Words that are always replaced."
    )
    regions: tuple[str, ...] = Field(
        default=("US", "GB", "DE", "FR", "ES", "IT", "BR", "IN", "JP", "CN"),
        max_length=32,
        description="Countries (two letters) whose telephone numbers are known without their code.",
    )
    attachments: Literal["refuse", "pass"] = Field(
        default="refuse",
        description="What happens to a request with images, sound or files, in which nothing can "
        "be replaced.",
    )


def presidio_address(settings: PrivacySettings) -> str | None:
    """Return the address of the operator's Presidio analyzer, if there is one."""
    return settings.presidio_url or os.environ.get("PRESIDIO_ANALYZER_API_BASE") or None


class AnswerCheckSettings(_Settings):
    """The operator's own check of answers, for the verifier `http`."""

    url: str | None = Field(
        default=None,
        pattern="^https?://",
        description="Where answers are posted as JSON (`question`, `answer`). The reply is JSON: "
        "`pass` (true, false or null) and `score` (0 to 1), one or both.",
    )
    token: str | None = Field(
        default=None, repr=False, description="Sent as a bearer token, such as os.environ/NAME."
    )
    timeout_s: float = Field(default=10.0, gt=0, le=300, description="Seconds for one answer.")


class SplSettings(_Settings):
    """What the approach `spl` may do."""

    learning: bool = Field(
        default=False, description="Let requests and aliases that ask for it add strategies."
    )


SigningAlgorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
"""An algorithm whose signatures a public key verifies; the others are not for access tokens."""

Redaction = Literal["private", "credentials", "texts"]
"""What a log of conversations has no longer: private values, only credentials, or all texts."""


class ConversationLogSettings(_Settings):
    """The log of conversations."""

    directory: AbsolutePath | None = Field(
        default=None, description="Folder of the files, one for each day; unset, there are none."
    )
    max_bytes_per_day: int = Field(
        default=1 << 30, ge=1 << 16, description="Bytes of a day's file, of all workers together."
    )
    keep_days: int | None = Field(
        default=None, ge=1, description="Days after which a file is deleted; unset, never."
    )
    redact: Redaction = Field(
        default="private",
        description="What is replaced: private values as in `privacy`, only credentials, or all "
        "texts.",
    )


class ShadowLogSettings(_Settings):
    """What the shadows of all models may spend, and where their results are kept."""

    directory: AbsolutePath | None = Field(
        default=None,
        description="Folder of the files, one for each day; unset, no shadow runs.",
    )
    max_cost_per_day: float = Field(
        default=1.0,
        gt=0,
        description="US dollars of a day (UTC), of all workers together, after which none begins.",
    )
    at_once: int = Field(default=2, ge=1, le=64, description="Shadows of a worker at once.")
    max_bytes_per_day: int = Field(
        default=1 << 26, ge=1 << 16, description="Bytes of a day's file; no shadow begins after."
    )
    keep_days: int | None = Field(
        default=None, ge=1, description="Days after which a file is deleted; unset, never."
    )


def _with_policy(path: str) -> str:
    read_policy(path)
    return path


class AutoSettings(_Settings):
    """What `auto` has learned."""

    policies: dict[str, Annotated[AbsolutePath, AfterValidator(_with_policy)]] = Field(
        default_factory=dict[str, str],
        max_length=64,
        description="Absolute paths of policy files, which `optillm-hooks eval --policy` writes; a "
        "request names one as `auto(policy=NAME)`. Read at start-up.",
    )


class FusionPreset(_Settings):
    """A panel of `fusion`. What it does not set is as in a request without it."""

    models: tuple[str, ...] = Field(
        min_length=1, max_length=16, description="Model groups that respond, in turn."
    )
    judge: str | None = Field(default=None, description="Model group that compares responses.")
    synthesiser: str | None = Field(default=None, description="Model group that writes the answer.")
    n: int | None = Field(default=None, ge=1, le=16, description="Responses.")
    first_m: int | None = Field(default=None, ge=1, le=64, description="Responses to wait for.")
    agreement: Literal["majority", "all"] = Field(
        default="majority", description="Responses that make an answer without a judgement."
    )


class FusionSettings(_Settings):
    """The panels that `fusion` has by name."""

    presets: dict[str, FusionPreset] = Field(
        default_factory=dict[str, FusionPreset],
        max_length=64,
        description="Panels, which a request names as `fusion(preset=NAME)`.",
    )


class PageSettings(_Settings):
    """The page at `/optillm`."""

    enabled: bool = Field(default=True, description="Serve the page and its data.")
    plans: int = Field(
        default=200,
        ge=0,
        le=10_000,
        description="Finished plans that a worker keeps in memory for their replay; 0 keeps none.",
    )
    texts: bool = Field(default=False, description="Keep their questions and answers too.")


class BrownoutSettings(_Settings):
    """When plans take fewer samples because a worker is busy."""

    calls: int | None = Field(
        default=None,
        ge=1,
        description="Model calls of plans, under way or waiting in a worker, from which plans that "
        "begin take at most 3 samples; from twice as many, one. Unset: never.",
    )
    hold_s: float = Field(
        default=10.0,
        ge=0,
        le=3600,
        description="Seconds for which the calls have to stay below 70 % of that until it ends.",
    )


class OAuthClaims(_Settings):
    """What a token's claims say about its bearer, by the names of the claims."""

    user: str = Field(default="sub", description="The claim with the user.")
    team: str | None = Field(default=None, description="The claim with the team.")
    metadata: tuple[str, ...] = Field(
        default=(), description="Claims that become metadata of the caller's key in LiteLLM."
    )


class OAuthSettings(_Settings):
    """Access tokens of an OAuth 2.1 authorization server, as JWTs."""

    issuer: str = Field(min_length=1, description="What `iss` must be, to the letter.")
    audience: str = Field(min_length=1, description="What `aud` must be or contain.")
    jwks_url: str = Field(
        pattern=r"^(?:https://|http://(?:127\.0\.0\.1|localhost|\[::1\])[:/])",
        description="Where the issuer publishes its public keys: by HTTPS, or on this host.",
    )
    scopes: dict[str, tuple[str, ...]] = Field(
        min_length=1,
        description="The models that each scope grants: model groups, aliases, patterns such as "
        "`openai/*`.",
    )
    algorithms: tuple[SigningAlgorithm, ...] = Field(
        default=("RS256", "PS256", "ES256", "EdDSA"),
        min_length=1,
        description="Algorithms that a signature may have.",
    )
    claims: OAuthClaims = Field(default_factory=OAuthClaims, description="Who the bearer is.")
    leeway_s: float = Field(
        default=30.0, ge=0, le=600, description="Seconds that clocks may differ by."
    )
    jwks_ttl_s: float = Field(
        default=300.0, gt=0, description="Seconds after which the keys are fetched again."
    )
    jwks_pause_s: float = Field(
        default=10.0,
        ge=0,
        description="Least seconds between two fetches, whatever tokens name an unknown key.",
    )

    @field_validator("scopes")
    @classmethod
    def _grants_models(cls, scopes: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for scope, models in scopes.items():
            if not models:
                raise ValueError(f"must name at least one model for {scope!r}")
        return scopes


class Settings(RunSettings):
    """`litellm_settings.optillm_settings`: the settings of requests that name no alias."""

    default_approach: str | None = Field(
        default=None, description="The approach of requests that name none; unset, a plain call."
    )
    forms: Forms = Field(
        default_factory=Forms, description="The approaches that each form may name."
    )
    plan_calls: PlanCalls = Field(
        default_factory=PlanCalls, description="Maximum estimated model calls of a plan."
    )
    code_runner_options: CodeRunnerOptions = Field(
        default_factory=CodeRunnerOptions, description="Options of the code runners, by name."
    )
    memory: MemorySettings = Field(
        default_factory=MemorySettings, description="What `memory` may use besides models."
    )
    store: StoreSettings = Field(
        default_factory=StoreSettings, description="Where stages keep what outlasts a request."
    )
    spl: SplSettings = Field(
        default_factory=SplSettings, description="What the approach `spl` may do."
    )
    answer_check: AnswerCheckSettings = Field(
        default_factory=AnswerCheckSettings, description="Your own check of answers."
    )
    auto: AutoSettings = Field(default_factory=AutoSettings, description="What `auto` has learned.")
    fusion: FusionSettings = Field(
        default_factory=FusionSettings, description="The panels that `fusion` has by name."
    )
    max_choices: int = Field(default=64, ge=1, description="Maximum choices (n) of one request.")
    plugins_dir: str | None = Field(
        default=None,
        description="The absolute path of a directory with OptiLLM plugin files, which run with "
        "all rights of the proxy. Read at start-up; unset: the environment variable "
        "`OPTILLM_PLUGINS_DIR`.",
    )
    allowed_packages: AllowedPackages = Field(
        default=(),
        description="Installed packages whose approaches, plugins and verifiers are loaded at "
        "start-up, with all rights of the proxy: names, or all. Unset: those that the environment "
        "variable `OPTILLM_ALLOWED_PACKAGES` lists, with commas.",
    )
    web: WebSettings = Field(
        default_factory=WebSettings, description="How approaches reach the web."
    )
    privacy: PrivacySettings = Field(
        default_factory=PrivacySettings, description="How private values are found."
    )
    max_inner_calls: int | None = Field(
        default=None,
        ge=1,
        description="Model calls of plans that a worker has under way at once; others wait, in "
        "turn over the keys and their requests. Unset: no limit.",
    )
    brownout: BrownoutSettings = Field(
        default_factory=BrownoutSettings,
        description="When plans take fewer samples because a worker is busy.",
    )
    page: PageSettings = Field(default_factory=PageSettings, description="The page at `/optillm`.")
    conversation_log: ConversationLogSettings = Field(
        default_factory=ConversationLogSettings, description="A log of the conversations."
    )
    shadow: ShadowLogSettings = Field(
        default_factory=ShadowLogSettings,
        description="What shadows may spend, and where their results are kept.",
    )
    oauth: OAuthSettings | None = Field(
        default=None,
        description="Access tokens in place of keys, by `custom_auth`.",
    )
    allow_no_log: bool = Field(
        default=False,
        description="Let a request's `no-log: true` keep its inner calls out of LiteLLM's logs and "
        "spend.",
    )

    @property
    def presets(self) -> Presets:
        """The parameters of the operator's presets."""
        panels, policies = self.fusion.presets, self.auto.policies
        return {
            "fusion": {name: panels[name].model_dump(exclude_unset=True) for name in panels},
            "auto": {name: read_policy(path).parameters for name, path in policies.items()},
        }


def plugins_directory(settings: Settings) -> Path | None:
    """Return the operator's directory of plugin files, if there is one."""
    given = settings.plugins_dir or os.environ.get("OPTILLM_PLUGINS_DIR")
    return Path(given).expanduser() if given else None


def allowed_packages(settings: Settings) -> AllowedPackages:
    """Return the packages whose entry points the operator allows to be loaded."""
    given = os.environ.get("OPTILLM_ALLOWED_PACKAGES", "").strip()
    listed = tuple(name for each in given.split(",") if (name := each.strip()))
    return settings.allowed_packages or ("all" if given == "all" else listed)


def forbidden(approaches: Iterable[Approach], allowed: NamedApproaches) -> list[str]:
    """Return the names of `approaches` that a form restricted to `allowed` may not name."""
    if allowed == "all":
        return []
    return [
        approach.name
        for approach in approaches
        if not (
            not approach.needs
            if allowed == "safe"
            else isinstance(allowed, tuple) and approach.name in allowed
        )
    ]


def variable(name: str) -> str | None:
    """Return the value of an environment variable, or None."""
    return os.environ.get(name)


def approaches_disabled() -> bool:
    """Return whether the environment switches every approach off (`OPTILLM_DISABLED`).

    Whatever is no clear no counts as a yes: it is set in a hurry.
    """
    given = (variable("OPTILLM_DISABLED") or "").strip().lower()
    return given not in ("", "0", "false", "no", "off")
