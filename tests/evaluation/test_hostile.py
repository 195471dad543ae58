"""What a hostile host or model sends ends no run, and reaches neither figures nor the terminal."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from optillm_hooks.cli import main
from optillm_hooks.evaluation.asking import Outcome, kept, read_outcomes
from optillm_hooks.gateway.shadow_log import Record, ShadowLog, Side
from optillm_hooks.settings import ShadowLogSettings
from tests.json_host import NO_HEADERS, json_host
from tests.proxy import ROOT

CLEARS = "\x1b[2J\x1b]0;owned\x07"
"""What clears a terminal and names its window."""

ANSWER = {"question": "6 * 7?", "answer": "42"}


def evaluate(folder: Path, url: str, line: Mapping[str, Any], *more: str) -> Outcome:
    """Return what came of one question."""
    (folder / "own.jsonl").write_text(json.dumps(line), encoding="utf-8")
    options = ["--base-url", url, "--models", "odd", "--out", str(folder), *more]
    main(["eval", *options, "--tasks", str(folder / "own.jsonl")])
    [outcome] = read_outcomes(folder / "outcomes.jsonl")
    return outcome


def replying(
    content: object, headers: Mapping[str, str] = NO_HEADERS, **more: object
) -> Any:  # a context manager with the host's URL
    choices = [{"message": {"role": "assistant", "content": content}}]
    return json_host(lambda *_: (200, {"choices": choices, **more}), headers)


SLOW = r"^(a+)+$"
"""It takes twice as long for each further letter of a text that it does not match."""

SLOW_SCHEMA = {"name": "x", "schema": {"type": "string", "pattern": SLOW}}


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ({"check": "regex", "pattern": SLOW}, "a" * 28 + "!"),
        (
            {
                "check": "json_schema",
                "response_format": {"type": "json_schema", "json_schema": SLOW_SCHEMA},
            },
            json.dumps("a" * 28 + "!"),
        ),
    ],
)
def test_a_reply_on_which_an_expression_takes_too_long_is_unread(
    tmp_path: Path, line: dict[str, Any], reply: str
) -> None:
    with replying(reply) as url:
        assert evaluate(tmp_path, url, {"question": "?", **line}).grade == "unread"


@contextmanager
def dripping_host(document: object) -> Iterator[str]:
    """Yield the address of a host that sends blanks for four seconds before its reply."""
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.end_headers()
            try:
                for _ in range(100):
                    ended.wait(0.04)
                    self.wfile.write(b" ")
                self.wfile.write(json.dumps(document).encode())
            except OSError:  # the client did not wait
                return

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            ended.set()
            server.shutdown()


def test_the_timeout_is_that_of_a_whole_reply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optillm_hooks.evaluation.asking._TRIES", 1)
    with dripping_host({"choices": [{"message": {"content": "42"}}]}) as url:
        outcome = evaluate(tmp_path, url, ANSWER, "--timeout", "0.5")
    assert (outcome.grade, outcome.error) == (None, "no reply within the timeout")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (f"{CLEARS}bad", "400"),
        ("x" * 1000, "400"),
        ({"a": 1}, "400"),
        ("400", "400"),
        ("unknown_policy", "400 unknown_policy"),
    ],
)
def test_a_refusal_is_told_with_its_message_and_its_code_only_if_it_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], code: object, said: str
) -> None:
    message = f"{CLEARS}no policy 'mine'\nmore"
    with json_host(lambda *_: (400, {"error": {"message": message, "code": code}})) as url:
        assert evaluate(tmp_path, url, ANSWER).error == f"{said}: {CLEARS}no policy 'mine'"
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert f"1 without a grade: odd: {said}: \\x1b[2J" in printed


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, {"error": {"message": "sk-secret is wrong", "code": "invalid"}}, "401 invalid"),
        (404, {"error": {"message": 42}}, "404"),
        (422, {"error": "text"}, "422"),
        (400, ["text"], "400"),
    ],
)
def test_other_errors_are_told_in_short(
    tmp_path: Path, status: int, body: object, said: str
) -> None:
    with json_host(lambda *_: (status, body)) as url:
        assert evaluate(tmp_path, url, ANSWER).error == said


def test_errors_of_one_kind_are_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = iter(range(100))

    def refusing(*_: object) -> tuple[int, Any]:
        return 400, {"error": {"message": f"{next(tokens)} tokens are too many", "code": "long"}}

    lines = [json.dumps({**ANSWER, "id": str(number)}) for number in range(5)]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    given = ["--models", "m", "--tasks", str(tmp_path / "own.jsonl"), "--out", str(tmp_path)]
    with json_host(refusing) as url:
        assert main(["eval", "--base-url", url, *given]) == 1
    assert capsys.readouterr().out.count("without a grade") == 1


@pytest.mark.parametrize("cost", ["-1", "nan", "inf", "1e300", "?"])
def test_a_cost_that_cannot_be_is_not_believed(tmp_path: Path, cost: str) -> None:
    usage = {"prompt_tokens": -(10**30), "completion_tokens": 10**30}
    with replying("42", {"x-litellm-response-cost": cost}, usage=usage) as url:
        outcome = evaluate(tmp_path, url, ANSWER)
    assert (outcome.grade, outcome.cost_usd) == ("right", None)
    assert outcome.prompt_tokens == outcome.completion_tokens == 0


@pytest.mark.parametrize(
    "note", [{"chosen": CLEARS, "samples": 3}, {"chosen": "answer", "samples": "x"}, {}]
)
def test_a_note_that_is_not_ours_is_left_out(tmp_path: Path, note: dict[str, Any]) -> None:
    with replying("42", optillm={"notes": [{"name": "auto", **note}]}) as url:
        outcome = evaluate(tmp_path, url, ANSWER)
    assert (outcome.grade, outcome.auto) == ("right", None)


def test_no_name_in_a_report_of_shadows_reaches_the_terminal_as_a_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behind a wildcard, a client chooses the name of the model."""
    log = ShadowLog(ShadowLogSettings(directory=str(tmp_path)), str(tmp_path))
    name = f"any/<script>{CLEARS}"
    side = Side(model=name, call_id="x", seconds=1, cost_usd=0)
    log.add(Record(route="chat", served=side, shadow=side, by="judge", verdict="tie"))
    log.files.thread.shutdown()
    out = tmp_path / "out"
    foreign = '{"served": 1}\n{"served": {"model": "a"}, "verdict": "tie"}\n' + "[" * 100_000
    (tmp_path / "shadows-2026-01-01.jsonl").write_text(foreign)
    assert main(["eval", "--shadow", str(tmp_path), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert r"any/<script>\x1b[2J" in printed
    assert "<script>" not in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--per-second", "0"], "must be above 0"),
        (["--timeout", "nan"], "must be a number from 0"),
        (["--temperature", "nan"], "must be a number from 0"),
        (["--usd-per-point", "-1"], "must be a number from 0"),
        (["--base-url", "localhost:4000"], "must begin with http:// or https://"),
        (["--base-url", "http://"], "must name a host"),
        (["--base-url", "http://[::1"], "must name a host"),
        (["--base-url", "http://localhost:port/v1"], "must name a host"),
        (["--base-url", "http://localhost:99999/v1"], "must name a host"),
        (["--base-url", "http://local host/v1"], "must name a host"),
        (["--base-url", "http://localhost/v1/chat/completions"], "must end before /chat"),
        (["--base-url", "http://localhost/v1?version=1"], "must end before /chat"),
        (["--key", ""], "the key must be one line"),
        (["--key", "schlüssel"], "the key must be one line"),
        (["--key", "a\nb"], "the key must be one line"),
    ],
)
def test_an_option_that_cannot_be_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    (tmp_path / "own.jsonl").write_text(json.dumps(ANSWER))
    given = ["--models", "m", "--tasks", str(tmp_path / "own.jsonl"), "--out", str(tmp_path)]
    with replying("42") as url, pytest.raises(SystemExit):
        raise SystemExit(main(["eval", "--base-url", url, *given, *options]))
    assert said in capsys.readouterr().err


def test_a_damaged_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text("{")
    (tmp_path / "own.jsonl").write_text(json.dumps(ANSWER))
    given = ["--models", "m", "--tasks", str(tmp_path / "own.jsonl"), "--out", str(tmp_path)]
    assert main(["eval", "--base-url", "http://127.0.0.1:9", *given]) == 1
    assert "choose another --out" in capsys.readouterr().err


def test_the_first_failure_of_each_kind_is_told_while_others_are_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The host answers the last question only when the first failures have been told."""
    told, refusal = list[str](), (404, {"error": {"message": "no such page"}})

    def answer(_: str, body: Any) -> tuple[int, Any]:
        if body["messages"][0]["content"] != "last":
            return refusal
        told.append(capsys.readouterr().err)
        return 200, {"choices": [{"message": {"content": "42"}}]}

    lines = [{**ANSWER, "id": "1"}, {**ANSWER, "id": "2"}, {**ANSWER, "question": "last"}]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    given = ["--models", "m", "--tasks", str(tmp_path / "own.jsonl"), "--out", str(tmp_path)]
    with json_host(answer) as url:
        assert main(["eval", "--base-url", url, "--at-once", "1", *given]) == 0
        told.append(capsys.readouterr().err)
    assert "".join(told).count("m: 404: no such page") == 1


def test_a_run_that_is_stopped_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("optillm_hooks.evaluation.asking.ask_all", stopped)
    (tmp_path / "own.jsonl").write_text(json.dumps(ANSWER))
    given = ["--models", "m", "--tasks", str(tmp_path / "own.jsonl"), "--out", str(tmp_path)]
    assert main(["eval", "--base-url", "http://127.0.0.1:9", *given]) == 130
    assert "outcomes.jsonl has the outcomes so far: the same command" in capsys.readouterr().err


def test_where_no_model_replies_the_address_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with json_host(lambda *_: (404, {})) as url:
        assert evaluate(tmp_path, url, ANSWER).error == "404"
    assert f"no model has given a reply at {url}/chat/completions" in capsys.readouterr().err


def test_a_folder_takes_one_run_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.jsonl").write_text(json.dumps(ANSWER))
    given = ["--models", "m", "--tasks", str(tmp_path / "own.jsonl"), "--out", str(tmp_path)]
    with kept(tmp_path / "outcomes.jsonl"):
        assert main(["eval", "--base-url", "http://127.0.0.1:9", *given]) == 1
    assert "another run writes to it" in capsys.readouterr().err


def test_a_full_disk_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/full takes nothing, and gives zeros without an end."""
    monkeypatch.setattr("optillm_hooks.evaluation.asking.read_outcomes", lambda _: [])
    (tmp_path / "outcomes.jsonl").symlink_to("/dev/full")
    (tmp_path / "own.jsonl").write_text(json.dumps(ANSWER))
    given = ["--models", "m", "--tasks", str(tmp_path / "own.jsonl"), "--out", str(tmp_path)]
    with replying("42") as url:
        assert main(["eval", "--base-url", url, *given]) == 1
    assert "cannot be written to: No space left on device" in capsys.readouterr().err


def test_files_are_utf_8_in_every_locale_and_no_price_is_fetched(tmp_path: Path) -> None:
    """A separator of lines in a text ends no line of JSON, and a mark of Windows begins a file."""
    asked = list[str]()
    line = json.dumps({**ANSWER, "id": "caf\u00e9\u2028x"}, ensure_ascii=False)
    (tmp_path / "own.jsonl").write_text(f"\ufeff{line}", encoding="utf-8")

    def answer(path: str, _: Any) -> tuple[int, Any]:
        asked.append(path)
        return 200, {"choices": [{"message": {"content": "42"}}]}

    unset = "LITELLM_LOCAL_MODEL_COST_MAP"
    env = {name: value for name, value in os.environ.items() if name != unset}
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    command = [sys.executable, "-m", "optillm_hooks", "eval", "--models", "m"]
    command += ["--tasks", str(tmp_path / "own.jsonl"), "--out", str(tmp_path)]
    with json_host(answer) as url, replying("42") as prices:
        done = subprocess.run(
            [*command, "--base-url", url],
            cwd=ROOT,
            env={**env, **plain, "LITELLM_MODEL_COST_MAP_URL": prices},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "LiteLLM" not in done.stderr
    assert asked == ["/chat/completions"]
    [outcome] = read_outcomes(tmp_path / "outcomes.jsonl")
    assert outcome.problem == "caf\u00e9\u2028x"
