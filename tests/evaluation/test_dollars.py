"""What an evaluation costs: by the responses, apart for the judge, and by LiteLLM's spend log."""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from optillm_hooks.cli import main
from optillm_hooks.evaluation.spend_log import booked, new_run
from tests.json_host import serving

JUDGE, KEY = "judge", "sk-any"
QUESTIONS = [
    {"question": "Capital of France?", "answer": "Paris", "check": "judge"},
    {"question": "Capital of Peru?", "answer": "Lima", "check": "judge"},
]
PLAIN_USD, PLAN_USD, JUDGE_USD = 0.001, 0.004, 0.0005


class Gateway:
    """A LiteLLM proxy: prices in headers and in our report, and a spend log, if it has one.

    `log` has the entries of the calls; those of a plan are its inner calls.
    """

    def __init__(self, *, has_log: bool = True, late: int = 0) -> None:
        self.has_log, self.late = has_log, late
        self.log = list[dict[str, Any]]()
        self.looked = 0

    def complete(self, body: Any, trace: str) -> tuple[dict[str, Any], dict[str, str]]:
        model = body["model"]
        inner = 4 if model.startswith("moa") else 1
        of_each = JUDGE_USD if model == JUDGE else PLAIN_USD
        self.log += [{"session_id": trace, "spend": of_each, "model": model}] * inner
        text = "RIGHT" if model == JUDGE else "It is Paris."
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        message = {"role": "assistant", "content": text}
        reply: dict[str, Any] = {"choices": [{"message": message}], "usage": usage}
        if model == "unpriced":
            return reply, {}
        if inner > 1:
            return {**reply, "optillm": {"cost_usd": PLAN_USD, "calls": inner}}, {}
        return reply, {"x-litellm-response-cost": str(of_each)}

    def entries(self, asked: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """Answer as `/spend/logs/v2` does: a page of the sessions with a part of a name."""
        if not self.has_log:
            return 500, {"error": {"message": "No DB Connected"}}
        assert asked["start_date"] < asked["end_date"]
        size, page = int(asked["page_size"]), int(asked["page"])
        assert 1 <= size <= 1000
        self.looked += 1
        written = self.log[: len(self.log) - self.late]
        found = [each for each in written if asked["session_id"] in each["session_id"]]
        pages = -(-len(found) // size)
        shown = found[(page - 1) * size : page * size]
        document = {"data": shown, "total": len(found), "page": page, "total_pages": pages}
        return 200, document


@contextmanager
def endpoint(gateway: Gateway) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self._send(200, *gateway.complete(body, self.headers["x-litellm-trace-id"]))

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            assert (url.path, self.headers["authorization"]) == ("/spend/logs/v2", f"Bearer {KEY}")
            self._send(*gateway.entries(dict(parse_qsl(url.query))), {})

        def _send(self, status: int, document: object, headers: dict[str, str]) -> None:
            content = json.dumps(document).encode()
            self.send_response(status)
            for name, value in {"content-length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            return

    with serving(Handler) as address:
        yield f"{address}/v1"


def evaluate(gateway: Gateway, folder: Path, models: str = "plain,moa-plain") -> None:
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    options = ["--models", models, "--judge", JUDGE, "--tasks", str(folder / "own.jsonl")]
    with endpoint(gateway) as url:
        assert main(["eval", "--base-url", url, "--key", KEY, "--out", str(folder), *options]) == 0


def ends(printed: str) -> Sequence[str]:
    return [line for line in printed.splitlines() if "cost" in line or "spend log" in line]


def test_the_dollars_of_the_responses_are_those_of_the_spend_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = Gateway()
    evaluate(gateway, tmp_path)
    said, checked = ends(capsys.readouterr().out)
    assert said == ("The replies cost $0.010000, the judge $0.002000, by what the responses say.")
    assert checked == "The spend log has $0.012000 for this run, in 14 entries."
    plain, moa = csv.DictReader((tmp_path / "report.csv").read_text().splitlines())
    assert [float(row["cost_usd"]) for row in (plain, moa)] == [PLAIN_USD, PLAN_USD]
    assert [float(row["judge_usd"]) for row in (plain, moa)] == [JUDGE_USD, JUDGE_USD]
    assert [float(row["judge_tokens"]) for row in (plain, moa)] == [15, 15]
    assert checked in (tmp_path / "report.html").read_text()
    traces = [entry["session_id"] for entry in gateway.log]
    assert len(set(traces)) == 8  # of 4 requests for replies, and 4 for verdicts


def test_entries_that_come_late_are_found_by_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = Gateway(late=2)
    evaluate(gateway, tmp_path)
    assert "It differs by -0.00" in ends(capsys.readouterr().out)[1]
    gateway.late = 0
    evaluate(gateway, tmp_path)
    assert ends(capsys.readouterr().out)[1].endswith("$0.012000 for this run, in 14 entries.")
    assert len(gateway.log) == 14  # nothing was asked again


def test_other_runs_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gateway = Gateway()
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        evaluate(gateway, tmp_path / name, models="plain")
        assert ends(capsys.readouterr().out)[1].endswith("$0.003000 for this run, in 4 entries.")
    assert len(gateway.log) == 8


def test_without_a_spend_log_there_is_nothing_to_check_against(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(Gateway(has_log=False), tmp_path)
    said, checked = ends(capsys.readouterr().out)
    assert said.startswith("The replies cost $0.010000")
    assert checked.startswith("There is nothing to check it against")


def test_replies_without_a_price_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(Gateway(), tmp_path, models="unpriced,plain")
    said = ends(capsys.readouterr().out)[0]
    assert "The replies cost $0.002000 without 2 that have no price, the judge $0.002000" in said
    rows = csv.DictReader((tmp_path / "report.csv").read_text().splitlines())
    assert [row["cost_usd"] for row in rows] == ["", str(PLAIN_USD)]


def test_a_long_log_is_read_page_by_page() -> None:
    gateway, run = Gateway(), new_run()
    gateway.log = [{"session_id": f"{run.id}-{n}", "spend": 0.5} for n in range(2001)]
    with endpoint(gateway) as url:
        found = booked(url, KEY, run, 10.0)
    assert found
    assert (found.usd, found.entries, gateway.looked) == (1000.5, 2001, 3)
