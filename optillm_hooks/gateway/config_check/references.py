"""Checks of what the YAML refers to: objects of Python modules, and environment variables."""

import ast
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from optillm_hooks.gateway.config_check.problem import Problem
from optillm_hooks.gateway.config_check.sections import Sections, listed
from optillm_hooks.gateway.local_models import LOCAL_PROVIDER
from optillm_hooks.gateway.model_names import PROVIDER
from optillm_hooks.gateway.score_provider import SCORE_PROVIDER
from optillm_hooks.settings import meant, variable

_GATEWAY: Final = __name__.partition(".config_check")[0]
"""The package whose objects the YAML names; importing it here would be a circle."""

_HOOK: Final = f"{_GATEWAY}.hook"
_HANDLERS: Final = {
    PROVIDER: f"{_GATEWAY}.provider",
    LOCAL_PROVIDER: "optillm_hooks.local_provider.provider",
    SCORE_PROVIDER: f"{_GATEWAY}.scorer",
}
_TOKENS: Final = f"{_GATEWAY}.oauth.user_api_key_auth"
_REFERENCE: Final = "os.environ/"
_CALLBACKS: Final = ("callbacks", "success_callback", "failure_callback", "audit_log_callbacks")


def check_callbacks(config: Sections, folder: Path | None) -> Iterator[Problem]:
    """Yield callbacks that LiteLLM cannot load, and our own if it is missing.

    `folder` is that of the YAML: LiteLLM looks for modules there first.
    """
    for name in _CALLBACKS:
        for at, each in enumerate(listed(config.litellm.get(name))):
            if isinstance(each, str) and "." in each and "://" not in each:
                path = f"litellm_settings.{name}[{at}]"
                if (lacking := _lacking(each, folder)) is not None:
                    yield Problem(path, f"{lacking}: LiteLLM does not start with it")
    uses_us = any(entry.alias_model is not None for entry in config.models)
    if uses_us and _HOOK not in listed(config.litellm.get("callbacks")):
        yield Problem(
            "litellm_settings.callbacks",
            f"lacks {_HOOK}: requests with an approach are refused. Add it to the list",
        )


def check_tokens(config: Sections) -> Iterator[Problem]:
    """Yield the switches that are off without which LiteLLM ignores what an access token grants."""
    if config.general.get("custom_auth") != _TOKENS:
        return
    for path, section in (
        ("general_settings.custom_auth_run_common_checks", config.general),
        ("litellm_settings.enable_post_custom_auth_checks", config.litellm),
    ):
        if section.get(path.partition(".")[2]) is not True:
            yield Problem(
                path, "is not true: LiteLLM does not hold access tokens to their models and limits"
            )


def check_providers(config: Sections, folder: Path | None) -> Iterator[Problem]:
    """Yield handlers that LiteLLM cannot load, and those of ours that a model needs."""
    place = "litellm_settings.custom_provider_map"
    served = set[str]()
    for at, each in enumerate(listed(config.litellm.get("custom_provider_map"))):
        provider = each.get("provider") if isinstance(each, Mapping) else None
        handler = each.get("custom_handler") if isinstance(each, Mapping) else None
        if not isinstance(provider, str) or not isinstance(handler, str):
            text = "must be {provider: NAME, custom_handler: MODULE.OBJECT}"
            yield Problem(f"{place}[{at}]", text)
            continue
        served.add(provider)
        ours = _HANDLERS.get(provider)
        if ours is not None and handler != ours and handler.startswith("optillm_hooks."):
            yield Problem(f"{place}[{at}].custom_handler", f"is {handler!r}, but must be {ours}")
        elif (lacking := _lacking(handler, folder)) is not None:
            text = f"{lacking}: LiteLLM does not start with it"
            yield Problem(f"{place}[{at}].custom_handler", text)
    for provider, handler in _HANDLERS.items():
        users = [e.name for e in config.models if e.params["model"].startswith(f"{provider}/")]
        if users and provider not in served:
            entry = f"{{provider: {provider}, custom_handler: {handler}}}"
            yield Problem(
                place,
                f"lacks the provider {provider!r} of the model {users[0]!r}, so that requests for "
                f"it fail. Add `- {entry}`",
            )


def check_environment(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the references `os.environ/NAME` to variables that are not set.

    None with a manager of secrets, in which LiteLLM looks too.
    """
    general = config.get("general_settings")
    if isinstance(general, Mapping) and general.get("key_management_system"):
        return
    for path, value in _texts(config, ""):
        name = value.removeprefix(_REFERENCE)
        if name != value and variable(name) is None:
            text = f"the environment variable {name} is not set where this check runs"
            yield Problem(path, f"{text}: set it, or remove the line", logging.WARNING)


def resolved(value: Any) -> Any:
    """Return a part of the YAML with environment variables in place of references to them."""
    if isinstance(value, str) and value.startswith(_REFERENCE):
        return variable(value.removeprefix(_REFERENCE))
    if isinstance(value, Mapping):
        return {name: resolved(each) for name, each in value.items()}
    return [resolved(each) for each in value] if isinstance(value, list) else value


def _texts(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _texts(each, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list):
        for at, each in enumerate(value):
            yield from _texts(each, f"{path}[{at}]")


def _lacking(name: str, folder: Path | None) -> str | None:
    """Return why an object, such as `module.instance`, cannot be loaded; None if it can.

    The module's text is read. It does not run: it may do anything.
    """
    module, _, attribute = name.rpartition(".")
    source = _source_of(module, folder)
    if source is None:
        return f"there is no module {module!r}"
    if source.suffix != ".py":  # a compiled one
        return None
    try:
        found = dict(_names(ast.parse(source.read_bytes()).body))
    except SyntaxError as exc:
        return f"the module {module!r} has a mistake in line {exc.lineno}"
    if found.get(attribute) == "class":
        return f"{name!r} is a class, but must be an instance of it"
    if attribute in found or "*" in found:
        return None
    return f"the module {module!r} has no {attribute!r}{meant(attribute, found)}"


def _source_of(module: str, folder: Path | None) -> Path | None:
    """Return the file of a module, as LiteLLM looks for it; None if there is none."""
    beside = (folder or Path()).joinpath(*module.split(".")).with_suffix(".py")
    if folder is not None and beside.exists():
        return beside
    spec = None
    with suppress(ImportError, ValueError):
        spec = find_spec(module)
    return None if spec is None or spec.origin is None else Path(spec.origin)


def _names(body: Iterable[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Yield the names that statements of a module define, and whether each is a class.

    The name `*` stands for names that only running the module would tell.
    """
    for node in body:
        match node:
            case ast.ClassDef():
                yield node.name, "class"
            case ast.FunctionDef(name="__getattr__"):
                yield "*", ""
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.name, ""
            case ast.Import() | ast.ImportFrom():
                named = (each.asname or each.name for each in node.names)
                yield from ((name.partition(".")[0], "") for name in named)
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found = (each for target in targets for each in ast.walk(target))
                yield from ((each.id, "") for each in found if isinstance(each, ast.Name))
            case _:
                inner = (each for each in ast.iter_child_nodes(node) if isinstance(each, ast.stmt))
                yield from _names(inner)
                if isinstance(node, ast.Try):
                    yield from (name for handler in node.handlers for name in _names(handler.body))
