"""OptiLLM's configuration files, by the command: the YAML, which LiteLLM loads, and the report."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from litellm import Router

from optillm_hooks.cli import main
from tests.proxy import ROOT
from tests.upstream import Script, Status, Upstream, always


class Converted(NamedTuple):
    status: int
    yaml: Any
    report: str


@pytest.fixture
def convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(kind: str, document: object) -> Converted:
        file = tmp_path / "config"
        text = document if isinstance(document, str) else json.dumps(document)
        file.write_text(text)
        status = main(["convert", f"--{kind}-config", str(file)])
        out, err = capsys.readouterr()
        return Converted(status, yaml.safe_load(out), err)

    return run


MCP: dict[str, Any] = {
    "mcpServers": {
        "my-files": {
            "command": "npx",
            "args": ["-y", "server-filesystem", "/data"],
            "env": {"MODE": "read", "API_TOKEN": "t0p-secret", "OTHER": "${OTHER_KEY}"},
            "description": "Files",
            "timeout": 20.0,
        },
        "github": {
            "transport": "streamable-http",
            "url": "${GITHUB_MCP:-https://mcp.example.org/mcp}",
            "headers": {
                "Authorization": "Bearer ${GITHUB_TOKEN}",
                "X-Api-Key": "abc123",
                "X-Whole": "${WHOLE}",
                "Accept": "text/plain",
            },
            "sse_read_timeout": 300,
        },
        "events": {"transport": "sse", "url": "http://127.0.0.1:9/sse"},
        "socket": {"transport": "websocket", "url": "ws://127.0.0.1:9"},
    },
    "log_level": "DEBUG",
    "extra": 1,
}


class TestMcp:
    def test_servers(self, convert: Any) -> None:
        status, found, _ = convert("mcp", MCP)
        assert status == 0
        assert found["mcp_servers"] == {
            "my_files": {
                "transport": "stdio",
                "description": "Files",
                "command": "npx",
                "args": ["-y", "server-filesystem", "/data"],
                "env": {
                    "MODE": "read",
                    "API_TOKEN": "os.environ/MY_FILES_API_TOKEN",
                    "OTHER": "os.environ/OTHER_KEY",
                },
                "timeout": 20,
            },
            "github": {
                "transport": "http",
                "url": "os.environ/GITHUB_MCP",
                "static_headers": {
                    "Authorization": "Bearer ${GITHUB_TOKEN}",
                    "X-Api-Key": "os.environ/GITHUB_X_API_KEY",
                    "X-Whole": "os.environ/WHOLE",
                    "Accept": "text/plain",
                },
                "env_vars": [
                    {
                        "name": "GITHUB_TOKEN",
                        "value": "os.environ/GITHUB_TOKEN",
                        "scope": "global",
                    }
                ],
            },
            "events": {"transport": "sse", "url": "http://127.0.0.1:9/sse"},
        }

    def test_every_other_key_is_reported_and_no_secret_is(self, convert: Any) -> None:
        _, found, report = convert("mcp", MCP)
        for key in (
            "log_level",
            "extra",
            "mcpServers.my-files:",
            "mcpServers.my-files.env.API_TOKEN: set the environment variable MY_FILES_API_TOKEN",
            "mcpServers.github.url: LiteLLM knows no defaults: unless GITHUB_MCP is set, set it to "
            "'https://mcp.example.org/mcp'",
            "mcpServers.github.sse_read_timeout",
            "mcpServers.socket.transport: no 'websocket'",
            "LITELLM_ENABLE_MCP_STDIO=true",
            "allow_all_keys",
        ):
            assert key in report, key
        assert "t0p-secret" not in report + yaml.safe_dump(found)
        assert "abc123" not in report + yaml.safe_dump(found)

    @pytest.mark.parametrize(
        ("document", "said"),
        [
            ("[1]", "must be an object"),
            ({"mcpServers": {"a": {"transport": "http"}}}, "mcpServers.a.url is missing"),
            ({"mcpServers": {"a": {}}}, "mcpServers.a.command is missing"),
            ({"mcpServers": {"a": {"command": "x", "timeout": "soon"}}}, "must be a number"),
            ({"mcpServers": {"a-b": {"command": "x"}, "a_b": {"command": "x"}}}, "another server"),
            ("{", "config"),
        ],
    )
    def test_an_invalid_file_gives_no_yaml(self, convert: Any, document: Any, said: str) -> None:
        status, found, report = convert("mcp", document)
        assert (status, found) == (1, None)
        assert said in report


PROXY = """
providers:
  - name: primary
    base_url: ${PRIMARY_URL:-https://api.example.org/v1}
    api_key: ${PRIMARY_KEY:-${OPENAI_API_KEY}}
    weight: 2
    max_concurrent: 5
    model_map:
      fast: gpt-4o-mini
      strong: gpt-4o-2024-08-06
  - name: backup
    base_url: https://${BACKUP_HOST}/v1
    api_key: sk-literal-key
    fallback_only: true
    model_map:
      fast: llama-3
  - name: azure
    base_url: https://mine.openai.azure.com
    api_key: ${AZURE_KEY}
    weight: "${AZURE_WEIGHT:-3}"
    colour: blue
routing:
  strategy: weighted
  health_check: {enabled: true, interval: 45, timeout: 7}
timeouts: {request: 20, connect: 5}
queue: {max_concurrent: 50, timeout: 60}
monitoring: {log_level: INFO, track_latency: true, track_errors: false}
"""


class TestProxy:
    def test_models(self, convert: Any) -> None:
        _, found, _ = convert("proxy", PROXY)
        *served, free = found["model_list"]
        assert free["model_name"] == "optillm/*"
        rows = {model["model_info"]["id"]: model for model in served}
        assert list(rows) == [
            f"{provider}/{model}"
            for model in ("fast", "strong", "*")
            for provider in ("primary", "backup", "azure")
        ]
        assert rows["primary/fast"] == {
            "model_name": "fast",
            "litellm_params": {
                "model": "openai/gpt-4o-mini",
                "api_base": "os.environ/PRIMARY_URL",
                "api_key": "os.environ/PRIMARY_KEY",
                "weight": 2,
                "order": 1,
                "max_parallel_requests": 5,
            },
            "model_info": {"id": "primary/fast", "health_check_timeout": 7},
        }
        assert rows["backup/strong"]["litellm_params"] == {
            "model": "openai/strong",  # a provider gets a name that it does not map as it is
            "api_base": "os.environ/BACKUP_BASE_URL",
            "api_key": "os.environ/BACKUP_API_KEY",
            "weight": 1,
            "order": 2,
        }
        assert rows["azure/*"] == {
            "model_name": "*",
            "litellm_params": {
                "model": "azure/*",
                "api_base": "https://mine.openai.azure.com",
                "api_key": "os.environ/AZURE_KEY",
                "api_version": "2024-02-01",
                "weight": 3,
                "order": 1,
            },
            "model_info": {"id": "azure/*", "disable_background_health_check": True},
        }

    def test_settings(self, convert: Any) -> None:
        _, found, _ = convert("proxy", PROXY)
        assert found["router_settings"] == {
            "routing_strategy": "simple-shuffle",
            "enable_weighted_failover": True,
            "num_retries": 2,
            "timeout": 20,
            "allowed_fails": 0,
            "cooldown_time": 45,
            "disable_cooldowns": True,
        }
        assert found["general_settings"] == {
            "master_key": "os.environ/LITELLM_MASTER_KEY",
            "cancel_on_disconnect": True,
            "health_check_skip_disabled_background_models": True,
            "background_health_checks": True,
            "enable_health_check_routing": True,
            "health_check_interval": 45,
            "global_max_parallel_requests": 50,
        }

    def test_every_other_key_is_reported_and_no_secret_is(self, convert: Any) -> None:
        _, found, report = convert("proxy", PROXY)
        for key in (
            "providers[0].base_url: LiteLLM knows no defaults: unless PRIMARY_URL is set",
            "providers[0].api_key: LiteLLM knows no defaults: unless PRIMARY_KEY is set, set it to "
            "'${OPENAI_API_KEY}'",
            "providers[0].max_concurrent",
            "providers[1].base_url: set the environment variable BACKUP_BASE_URL to "
            "'https://${BACKUP_HOST}/v1'",
            "providers[1].api_key: set the environment variable BACKUP_API_KEY",
            "providers[2].base_url: read as Azure's",
            "providers[2].weight",
            "providers[2].colour: unknown key",
            "routing.health_check",
            "timeouts.connect",
            "queue.timeout",
            "monitoring.log_level",
            "monitoring.track_latency",
        ):
            assert key in report, key
        assert "sk-literal-key" not in report + yaml.safe_dump(found)

    def test_the_order_of_failover(self, convert: Any) -> None:
        one = {"base_url": "http://a", "api_key": "${K}"}
        providers = [one, one | {"fallback_only": True}, one]
        document = {"providers": providers, "routing": {"strategy": "failover"}}
        _, found, _ = convert("proxy", document)
        assert [row["litellm_params"].get("order") for row in found["model_list"]] == [
            1,
            3,
            2,
            None,
        ]

    def test_the_defaults_are_optillms(self, convert: Any) -> None:
        document = {"providers": [{"base_url": "http://a", "api_key": "${K}"}]}
        _, found, report = convert("proxy", document)
        assert found["router_settings"]["timeout"] == 30
        assert found["general_settings"]["health_check_interval"] == 30
        assert found["general_settings"]["global_max_parallel_requests"] == 100
        assert "order" not in found["model_list"][0]["litellm_params"]
        assert "no round robin" in report

    @pytest.mark.parametrize(
        ("document", "said"),
        [
            ("providers:\n", "at least one provider"),
            ({"providers": [{"api_key": "${K}"}]}, "providers[0].base_url is missing"),
            (
                {"providers": [{"base_url": "x", "api_key": "y", "weight": "heavy"}]},
                "providers[0].weight must be a number",
            ),
            (
                {"providers": [{"base_url": "x", "api_key": "y", "fallback_only": "maybe"}]},
                "must be true or false",
            ),
            ({"providers": [{"base_url": "x", "api_key": "y", "name": "n"}] * 2}, "there twice"),
        ],
    )
    def test_an_invalid_file_gives_no_yaml(self, convert: Any, document: Any, said: str) -> None:
        status, found, report = convert("proxy", document)
        assert (status, found) == (1, None)
        assert said in report


LOAD = """\
import asyncio, json, os, sys
from litellm.proxy.proxy_server import ProxyConfig
from litellm.proxy._experimental.mcp_server.mcp_server_manager import global_mcp_server_manager
async def load():
    router, *_ = await ProxyConfig().load_config(router=None, config_file_path=sys.argv[1])
    servers = {
        s.name: [s.transport, s.url or None, s.command or None, s.env]
        for s in global_mcp_server_manager.get_registry().values()
    }
    print(json.dumps({
        "models": sorted(set(router.get_model_names())),
        "keys": sorted({d["litellm_params"].get("api_key") or "" for d in router.get_model_list()}),
        "servers": servers,
    }), flush=True)
    os._exit(0)  # LiteLLM is still connecting to the servers, and does not stop when asked to
asyncio.run(load())
"""


def test_litellm_loads_what_comes_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "proxy.yaml").write_text(PROXY)
    (tmp_path / "mcp.json").write_text(json.dumps(MCP))
    files = ["--proxy-config", str(tmp_path / "proxy.yaml"), "--mcp-config"]
    options = ["--best-of-n", "4", "--approach", "re2", "--model", "fast", "--no-ssl-verify"]
    assert main(["convert", *files, str(tmp_path / "mcp.json"), *options]) == 0
    (tmp_path / "all.yaml").write_text(capsys.readouterr().out)
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MASTER_KEY": "sk-unused",
        "PRIMARY_URL": "https://api.example.org/v1",
        "PRIMARY_KEY": "first",
        "BACKUP_BASE_URL": "https://backup.example.org/v1",
        "BACKUP_API_KEY": "second",
        "AZURE_KEY": "third",
        "GITHUB_MCP": "http://127.0.0.1:9/mcp",
        "MY_FILES_API_TOKEN": "token",
        "OTHER_KEY": "other",
        "GITHUB_TOKEN": "g",
        "GITHUB_X_API_KEY": "x",
        "WHOLE": "w",
    }
    ended = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "all.yaml"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    loaded = json.loads(ended.stdout.splitlines()[-1])
    assert loaded["models"] == ["*", "bon-fast", "fast", "optillm/*", "strong"]
    assert loaded["keys"] == ["", "first", "second", "third"]
    assert loaded["servers"] == {
        "my_files": [
            "stdio",
            None,
            "npx",
            {"MODE": "read", "API_TOKEN": "token", "OTHER": "other"},
        ],
        "github": ["http", "http://127.0.0.1:9/mcp", None, {}],
        "events": ["sse", "http://127.0.0.1:9/sse", None, {}],
    }


def test_a_router_goes_to_the_next_provider(convert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the same request, when all of the first order have failed."""
    monkeypatch.setenv("A_API_KEY", "a")
    monkeypatch.setenv("B_API_KEY", "b")
    with Upstream(Script(fault=always(Status(500)))) as bad, Upstream() as good:
        providers = [
            {"name": "a", "base_url": bad.url, "api_key": "x", "model_map": {"fast": "small"}},
            {"name": "b", "base_url": good.url, "api_key": "y", "fallback_only": True},
        ]
        found = convert("proxy", {"providers": providers}).yaml
        models = [m for m in found["model_list"] if m["model_name"] != "optillm/*"]
        router = Router(model_list=models, **found["router_settings"])
        question = [{"role": "user", "content": "6 * 7?"}]
        answer = asyncio.run(router.acompletion(model="fast", messages=question))
        assert answer.choices[0].message.content.endswith("42")
        assert {call.body["model"] for call in bad.calls} == {"small"}
        assert [call.body["model"] for call in good.calls] == ["fast"]
        assert good.calls[0].headers["authorization"] == "Bearer b"
