"""What is reported of a solver's results."""

import pytest

from optillm_hooks.sandbox.client import WorkerLimits
from optillm_hooks.solver import client
from optillm_hooks.solver.client import MAX_REPORTED, Formalisation, solve
from optillm_hooks.types import Json

pytestmark = pytest.mark.anyio


async def test_a_long_result_is_cut_and_every_step_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def ask_worker(_module: str, _request: Json, _limits: WorkerLimits) -> Json:
        return {"results": [{"operation": "expand", "result": "x" * MAX_REPORTED}] * 2}

    monkeypatch.setattr(client, "ask_worker", ask_worker)
    report = await solve(Formalisation("algebra", "[]"), seconds=1, memory_mb=64)
    assert len(report.text) == MAX_REPORTED
    assert report.text.startswith("step 1, expand: xxx")
    assert report.statuses == ("expand", "expand")
