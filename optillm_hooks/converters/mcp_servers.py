"""OptiLLM's `mcp_config.json` as LiteLLM's `mcp_servers`."""

import re
from typing import Any, Final

from optillm_hooks.converters.report import (
    ENVIRON,
    NotConvertible,
    Report,
    read_number,
    read_object,
    read_text,
    whole_reference,
)

_TRANSPORTS: Final = {
    "stdio": "stdio",
    "sse": "sse",
    "http": "http",
    "streamable_http": "http",
    "streamable-http": "http",
}
_KEYS: Final = dict.fromkeys(
    (
        *("transport", "command", "args", "env", "url", "headers", "description", "timeout"),
        "sse_read_timeout",
    )
)
_SECRET: Final = re.compile(r"(?i)key|token|secret|passw|credential|auth|cookie")
_REFERENCE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def convert_mcp(document: Any, report: Report) -> dict[str, Any]:
    """Return the part of LiteLLM's configuration that stands for `document`."""
    config = read_object("the file", document)
    report.rest("", config, {"mcpServers": None, "log_level": None})
    if "log_level" in config:
        report.say("log_level", "set LITELLM_LOG in the proxy's environment instead")
    servers: dict[str, Any] = {}
    for name, given in read_object("mcpServers", config.get("mcpServers")).items():
        where = f"mcpServers.{name}"
        usable = re.sub(r"[^A-Za-z0-9_]", "_", name)
        if usable != name:
            report.say(where, f"the server is called {usable!r}: tools have its name and a hyphen")
        if usable in servers:
            raise NotConvertible(f"{where}: another server is called {usable!r} too")
        converted = _server(where, usable, read_object(where, given), report)
        if converted is not None:
            servers[usable] = converted
    if servers:
        report.say(
            "mcpServers",
            "in OptiLLM every caller has every tool; here, grant servers to keys and teams, or set "
            "allow_all_keys: true on a server",
        )
    return {"mcp_servers": servers}


def _server(where: str, name: str, given: dict[str, Any], report: Report) -> dict[str, Any] | None:
    report.rest(where, given, _KEYS)
    transport = given.get("transport", "stdio" if "url" not in given else "http")
    if transport not in _TRANSPORTS:
        report.say(f"{where}.transport", f"no {transport!r} in LiteLLM: the server is left out")
        return None
    server: dict[str, Any] = {"transport": _TRANSPORTS[transport]}
    if "description" in given:
        server["description"] = read_text(
            f"{where}.description", name, given["description"], report
        )
    if server["transport"] == "stdio":
        server |= _process(where, name, given, report)
    else:
        if "url" not in given:
            raise NotConvertible(f"{where}.url is missing")
        server["url"] = read_text(f"{where}.url", f"{name}_URL", given["url"], report)
        server |= _headers(
            where, name, read_object(f"{where}.headers", given.get("headers")), report
        )
    if "timeout" in given:
        timeout = read_number(f"{where}.timeout", given["timeout"], report)
        server |= {} if timeout is None else {"timeout": timeout}
    if "sse_read_timeout" in given:
        report.say(f"{where}.sse_read_timeout", "no such setting: `timeout` is for a whole call")
    return server


def _process(where: str, name: str, given: dict[str, Any], report: Report) -> dict[str, Any]:
    if "command" not in given:
        raise NotConvertible(f"{where}.command is missing")
    arguments = given.get("args") or []
    if not isinstance(arguments, list):
        raise NotConvertible(f"{where}.args must be a list")
    for argument in arguments:
        if "${" in str(argument):
            report.say(f"{where}.args", f"LiteLLM passes {argument!r} on as it is: write its value")
    report.say(
        f"{where}.transport",
        "servers over stdio need LITELLM_ENABLE_MCP_STDIO=true in the proxy's environment; they "
        "get only the variables in `env`, and PATH, HOME and the like",
    )
    for key in ("url", "headers"):
        if key in given:
            report.say(f"{where}.{key}", "no effect on a server over stdio")
    env = {
        key: _secret(f"{where}.env.{key}", f"{name}_{key}", key, value, report)
        for key, value in read_object(f"{where}.env", given.get("env")).items()
    }
    process: dict[str, Any] = {
        "command": read_text(f"{where}.command", f"{name}_COMMAND", given["command"], report),
        "args": [str(argument) for argument in arguments],
    }
    return process | ({"env": env} if env else {})


def _headers(where: str, name: str, given: dict[str, Any], report: Report) -> dict[str, Any]:
    """Return headers; LiteLLM fills in variables inside of them from its `env_vars`."""
    headers: dict[str, str] = {}
    variables: list[str] = []
    for key, value in given.items():
        at = f"{where}.headers.{key}"
        inside = _REFERENCE.findall(value) if isinstance(value, str) else []
        plain = isinstance(value, str) and "${" not in _REFERENCE.sub("", value)
        if inside and plain and whole_reference(value) is None:
            headers[key] = value
            variables += inside
        else:
            headers[key] = _secret(at, f"{name}_{key}", key, value, report)
    found: dict[str, Any] = {"static_headers": headers} if headers else {}
    if variables:
        found["env_vars"] = [
            {"name": each, "value": f"{ENVIRON}{each}", "scope": "global"}
            for each in dict.fromkeys(variables)
        ]
    return found


def _secret(where: str, wanted: str, key: str, value: Any, report: Report) -> str:
    """Return a value that may be a secret, which does not belong into a YAML file."""
    text = str(value) if isinstance(value, int | float) else value
    secret = bool(_SECRET.search(key))
    read = read_text(where, wanted, text, report, secret=secret)
    if secret and read == text and read:
        return report.variable(where, wanted, read, secret=True)
    return read
