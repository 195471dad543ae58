"""The image's parts without Docker: its files, its processes, its start and its configuration."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
import yaml

from optillm_hooks.config_files import SHIPPED
from optillm_hooks.gateway.config_check import problems
from tests.proxy import ROOT, Proxy
from tests.upstream import Upstream

DOCKERFILE = (ROOT / "Dockerfile").read_text()
SLIM = ROOT / "deploy/image/slim.yaml"
KEYS = {"LITELLM_MASTER_KEY": "sk-1", "OPENAI_API_KEY": "sk-2"}


def test_process_1_is_an_init_that_the_image_installs() -> None:
    """Process 1 inherits what a killed zygote leaves, and `litellm` would never reap it."""
    [entrypoint] = re.findall(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE)
    init, separator, *command = json.loads(entrypoint)
    assert (init, separator, command) == ("tini", "--", ["/app/start.sh"])
    assert re.search(rf"apt-get install .*\b{init}\b", DOCKERFILE)


def test_the_proxy_runs_without_privileges() -> None:
    users = re.findall(r"^(?:FROM|USER) .+$", DOCKERFILE, re.MULTILINE)
    last = [user for user, then in zip(users, [*users[1:], "FROM"], strict=True) if "FROM" in then]
    assert last == ["USER 10001"] * 2


def test_the_base_is_pinned_by_its_digest() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert [bool(re.search(r"@sha256:[0-9a-f]{64}$", base)) for base in bases] == [True, False]
    assert bases[1] == "slim"


def test_every_file_that_is_copied_exists() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    copied = [
        source
        for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert len(copied) > 6
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source not in ignored


@pytest.fixture(params=[HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE])
def answering(request: pytest.FixtureRequest) -> Iterator[tuple[int, HTTPStatus]]:
    """The port of a host that answers the probe, and the status of its answers."""
    status: HTTPStatus = request.param

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/health/liveliness"
            self.send_response(status if known else HTTPStatus.NOT_FOUND)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, status
        server.shutdown()
        thread.join()


def test_the_health_check_tells_a_living_proxy(answering: tuple[int, HTTPStatus]) -> None:
    [check] = re.findall(r"^HEALTHCHECK .* CMD \\\n\s+(.+)$", DOCKERFILE, re.MULTILINE)
    python, *arguments = json.loads(check)
    assert python == "python"
    port, status = answering
    given = [argument.replace(":4000", f":{port}") for argument in arguments]
    ended = subprocess.run([sys.executable, *given], capture_output=True, check=False)
    assert (ended.returncode == 0) == (status == HTTPStatus.OK)


def start(folder: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run the image's start script in `folder`, where litellm prints what it is given."""
    tools = folder / "bin"
    tools.mkdir()
    litellm = tools / "litellm"
    litellm.write_text('#!/bin/sh\necho "$@"\n')
    litellm.chmod(0o755)
    return subprocess.run(
        [ROOT / "deploy/image/start.sh", "--num_workers", "2"],
        cwd=folder,
        env={"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("default", "needed"), [(SLIM, KEYS), (SHIPPED, ["LITELLM_MASTER_KEY"])])
def test_without_its_keys_an_image_says_which_are_missing(
    tmp_path: Path, default: Path, needed: list[str]
) -> None:
    (tmp_path / "default.yaml").write_text(default.read_text())
    ended = start(tmp_path, OPENAI_API_KEY="")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"not set: {' '.join(needed)}. Pass each with docker run -e")


@pytest.mark.parametrize("mounted", [False, True])
def test_a_mounted_configuration_takes_the_place_of_the_default(
    tmp_path: Path, mounted: bool
) -> None:
    (tmp_path / "default.yaml").write_text(SLIM.read_text())
    if mounted:
        (tmp_path / "config.yaml").write_text("model_list: []")
    ended = start(tmp_path, **({} if mounted else KEYS))
    taken = "config.yaml" if mounted else "default.yaml"
    assert ended.stdout == f"--config {taken} --host 0.0.0.0 --port 4000 --num_workers 2\n"


def test_the_slim_image_serves_plain_models_and_an_alias_by_one_key(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = yaml.safe_load(SLIM.read_text())
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    assert problems(config) == []
    env = {"OPENAI_API_KEY": "sk-2", "OPENAI_BASE_URL": upstream.url}
    with Proxy(config, tmp_path, env=env, ledger=False) as proxy:
        for model in ("gpt-4o-mini", "gpt-4o-mini-careful"):
            asked = {"model": model, "messages": [{"role": "user", "content": "6 * 7?"}]}
            answer = proxy.post("/v1/chat/completions", asked)
            assert answer.status_code == 200, answer.text
        assert "optillm:" not in proxy.log
    assert {call.body["model"] for call in upstream.calls} == {"gpt-4o-mini"}


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server
