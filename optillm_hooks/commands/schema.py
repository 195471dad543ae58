"""Print the JSON Schema of LiteLLM's YAML with our settings, for editors.

It describes litellm_settings.optillm_settings and model_info.optillm, and lets everything else of
LiteLLM's pass.
"""

import argparse
import json
import sys
from typing import Any, Final


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def run(_: argparse.Namespace) -> int:
    sys.stdout.write(text())
    return 0


def text() -> str:
    """Return the schema as the file in `docs/` has it."""
    return f"{json.dumps(schema(), indent=1)}\n"


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a whole YAML file."""
    from pydantic.json_schema import models_json_schema

    from optillm_hooks.local_provider.model_spec import ModelSpec
    from optillm_hooks.settings import AliasSettings, DeploymentSettings, Settings

    models = (Settings, AliasSettings, DeploymentSettings, ModelSpec)
    _, shared = models_json_schema([(model, "validation") for model in models])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "LiteLLM's configuration, with the settings of optillm_hooks",
        "type": "object",
        "properties": {
            "model_list": {"type": ["array", "null"], "items": _MODEL},
            "litellm_settings": _object(optillm_settings=_ref("Settings")),
        },
        "$defs": _with_variables(shared["$defs"]),
    }


def _ref(model: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{model}"}


def _object(**properties: object) -> dict[str, Any]:
    return {"type": ["object", "null"], "properties": properties}


_MODEL: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"model_info": _object(optillm_local=_ref("ModelSpec"))},
    "if": {"properties": {"litellm_params": {"properties": {"model": {"pattern": "^optillm/"}}}}},
    "then": {"properties": {"model_info": _object(optillm=_ref("AliasSettings"))}},
    "else": {"properties": {"model_info": _object(optillm=_ref("DeploymentSettings"))}},
}
"""A deployment: what `model_info.optillm` may have depends on whether it is an alias."""


def _with_variables(node: Any) -> Any:
    """Return `node` with patterns that a variable of the environment matches too."""
    if isinstance(node, list):
        return [_with_variables(each) for each in node]
    if not isinstance(node, dict):
        return node
    changed = {name: _with_variables(value) for name, value in node.items()}
    if isinstance(pattern := node.get("pattern"), str):
        changed["pattern"] = f"^os[.]environ/|{pattern}"
    return changed
