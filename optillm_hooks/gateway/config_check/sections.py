"""The parts of the proxy's YAML that the checks read, whatever a mistake has made of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from optillm_hooks.gateway.config_check.problem import Problem
from optillm_hooks.gateway.deployments import alias_model, is_alias
from optillm_hooks.settings import shown


class Entry(NamedTuple):
    """A deployment of `model_list`."""

    path: str
    name: str
    params: dict[str, Any]
    info: dict[str, Any]

    @property
    def deployment(self) -> dict[str, Any]:
        """The deployment as LiteLLM has it."""
        return {"model_name": self.name, "litellm_params": self.params, "model_info": self.info}

    @property
    def is_alias(self) -> bool:
        return is_alias(self.deployment)

    @property
    def alias_model(self) -> str | None:
        """The `<expression>/<base>` of an alias, or of the wildcard for all plans; else None."""
        return alias_model(self.deployment)


@dataclass(frozen=True, slots=True)
class Sections:
    """The sections of the YAML; those that are missing or wrong are empty."""

    models: tuple[Entry, ...]
    litellm: Mapping[str, Any]
    router: Mapping[str, Any]
    general: Mapping[str, Any]
    sandbox_tools: tuple[Mapping[str, Any], ...]

    @property
    def aliases(self) -> Iterator[Entry]:
        return (entry for entry in self.models if entry.is_alias)


def read_sections(config: Mapping[str, Any]) -> tuple[Sections, list[Problem]]:
    """Return the sections of the YAML, and what is wrong with their form."""
    wrong: list[Problem] = []

    def mapping(value: object, path: str) -> dict[str, Any]:
        if isinstance(value, Mapping):
            return {str(name): each for name, each in value.items()}
        if value is not None:
            got = ", got a text" if isinstance(value, str) else shown(value, path)
            wrong.append(Problem(path, f"must be a mapping, such as `name: value`{got}"))
        return {}

    def entries(name: str) -> list[tuple[str, dict[str, Any]]]:
        value = config.get(name)
        if not isinstance(value, list | None):
            wrong.append(Problem(name, "must be a list, whose entries begin with `- `"))
            return []
        places = [(f"{name}[{at}]", each) for at, each in enumerate(value or ())]
        empty = (path for path, each in places if each in (None, {}))
        wrong.extend(Problem(path, "is empty: remove it") for path in empty)
        return [(path, mapping(each, path)) for path, each in places]

    models: list[Entry] = []
    for path, entry in entries("model_list"):
        params = mapping(entry.get("litellm_params"), f"{path}.litellm_params")
        info = mapping(entry.get("model_info"), f"{path}.model_info")
        name, model = entry.get("model_name"), params.get("model")
        if isinstance(name, str) and isinstance(model, str):
            models.append(Entry(path, name, params, info))
        elif entry:
            lacks = "litellm_params.model" if isinstance(name, str) else "model_name"
            wrong.append(Problem(f"{path}.{lacks}", "is missing: every model needs it, as a text"))
    litellm, router, general = (
        mapping(config.get(name), name)
        for name in ("litellm_settings", "router_settings", "general_settings")
    )
    tools = tuple(tool for _, tool in entries("sandbox_tools"))
    return Sections(tuple(models), litellm, router, general, tools), wrong


def listed(given: object) -> list[Any]:
    """Return a list as it is, nothing as an empty one, and any other value as a list of it."""
    if given is None:
        return []
    return given if isinstance(given, list) else [given]
