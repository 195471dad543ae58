"""The report of shadows, from their files to the table."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from optillm_hooks.cli import main
from optillm_hooks.gateway.shadow_log import Record, ShadowLog, Side, Verdict
from optillm_hooks.settings import ShadowLogSettings


def written(folder: Path, verdicts: Sequence[Verdict | None], by: str = "judge") -> None:
    log = ShadowLog(ShadowLogSettings(directory=str(folder)), str(folder))
    for number, verdict in enumerate(verdicts):
        log.add(
            Record(
                route="chat",
                served=Side(model="careful", call_id=f"{by}{number}", seconds=1, cost_usd=0.5),
                shadow=Side(model="none on base", call_id="x", seconds=2, cost_usd=0.1, calls=3),
                by=by,
                verdict=verdict,
                error=None if verdict else "unread",
                cost_usd=0.2,
            )
        )
    log.files.thread.shutdown()


def rows(out: Path) -> list[dict[str, Any]]:
    with (out / "report.csv").open() as file:
        return [*csv.DictReader(file)]


def test_verdicts_become_a_paired_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    better: Verdict = "shadow"
    tie: Verdict = "tie"
    verdicts: list[Verdict | None] = [*[better] * 6, "served", *[tie] * 3, None, None]
    written(tmp_path, verdicts)
    written(tmp_path, ["same", "same", "different"], by="check:number")
    with (tmp_path / "shadows-2026-01-01.jsonl").open("w") as file:
        file.write('{"end": "full"}\n{"cut o')
    out = tmp_path / "out"
    assert main(["eval", "--shadow", str(tmp_path), "--out", str(out)]) == 0
    served, shadow, other, checked = rows(out)
    assert (served["model"], shadow["model"]) == ("careful", "none on base (judge)")
    assert (served["problems"], served["failed"]) == ("10", "2")
    assert (float(served["accuracy"]), float(shadow["accuracy"])) == (0.4, 0.9)
    assert (shadow["wins"], shadow["losses"]) == ("6", "1")
    assert float(shadow["p"]) == pytest.approx(0.125)  # 2 * (1 + 7) / 2**7
    assert (float(shadow["cost_usd"]), float(shadow["calls"])) == (0.1, 3)
    assert float(other["accuracy"]) == 1
    assert float(checked["accuracy"]) == pytest.approx(2 / 3)
    assert checked["wins"] == checked["p"] == ""  # a check does not know who is right
    assert "2 without a verdict: unread" in capsys.readouterr().out
    assert "none on base" in (out / "report.html").read_text()


def test_a_folder_without_results_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "--shadow", str(tmp_path)]) == 1
    assert "has no results of shadows" in capsys.readouterr().err
    assert main(["eval", "--models", "a"]) == 1
    assert "--models and --tasks are needed" in capsys.readouterr().err
