"""Hostile formalisations through the approach: all end, and change nothing outside the worker."""

import json
import os
import time
from pathlib import Path

import pytest

from optillm_hooks.budget import Limits
from optillm_hooks.testing import AnsweringLLM, answer, chat, context
from optillm_hooks.types import Chat, Sampling
from tests.solver import attacks
from tests.solver.processes import children

pytestmark = pytest.mark.anyio
SECRET = "the-canary-sings"
JSON_MODE = Sampling(fields={"response_format": {"type": "json_object"}})
"""With it, the plain answer is a call of its own."""

SOLVER_S = 0.6
MAX_S = 60.0
"""An attack that gets past the limits runs forever; a busy machine is slow to start and to kill."""


def batched(expressions: list[str]) -> list[str]:
    """Return requests of the maximum number of steps."""
    steps = [{"operation": "evaluate", "expression": text} for text in expressions]
    return [json.dumps(steps[start : start + 16]) for start in range(0, len(steps), 16)]


GROUPS = {
    "files": attacks.FILES,
    "commands": attacks.COMMANDS,
    "reading": attacks.READING,
    "heavy": attacks.HEAVY,
    "generated": list(attacks.generated()),
    "python": attacks.PYTHON,
    "json": attacks.JSON,
    "slow steps": attacks.SLOW_STEPS,
    "expressions": attacks.EXPRESSIONS,
}


def test_there_are_at_least_200_attacks() -> None:
    texts = [text for group in GROUPS.values() for text in group]
    assert len(texts) == len(set(texts)) >= 200


class Outside:
    """The files and processes that an attack must not change."""

    def __init__(self, folder: Path) -> None:
        self.canary = folder / "canary"
        self.new = folder / "new"
        self.canary.write_text(SECRET)
        self._before = self._state()

    def _state(self) -> object:
        folder = self.canary.parent
        return (
            sorted(path.name for path in folder.iterdir()),
            self.canary.read_text(),
            sorted(os.listdir("/")),
        )

    def check(self) -> None:
        assert self._state() == self._before
        assert children() == []


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Outside:
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    return Outside(tmp_path)


async def attack(
    text: str, outside: Outside, *, fenced: bool, client: Sampling | None = None
) -> None:
    """Check what comes of a reply to the first call, which may be the answer without a `client`.

    A reply that is no formalisation is then the answer, in the model's own words.
    """
    text = text.replace("{canary}", str(outside.canary)).replace("{new}", str(outside.new))
    written = f"```smt2\n{text}\n```" if fenced else text
    plain = "plain answer" if fenced or client else written

    def reply(asked: Chat, sampling: Sampling) -> str:
        if sampling.purpose == "draft":
            return written
        _, shown, found = asked[-1].text.partition("<part 2 ")
        return found if shown else "plain answer"

    ctx = context(limits=Limits(), client=client)
    started = time.monotonic()
    result = await answer(
        "z3", chat("?"), AnsweringLLM(reply), ctx, timeout_s=SOLVER_S, memory_mb=512, repairs=0
    )
    assert time.monotonic() - started < MAX_S
    assert SECRET not in result.text
    assert result.text == plain or "check 1:" in result.text or "step 1," in result.text
    assert len(ctx.trace.events) == 1
    outside.check()


@pytest.mark.parametrize(
    "text",
    [text for name in GROUPS if name not in ("expressions", "python") for text in GROUPS[name]],
    ids=lambda text: text[:40].encode("ascii", "backslashreplace").decode(),
)
async def test_a_hostile_formalisation_changes_nothing_and_ends(
    text: str, outside: Outside
) -> None:
    await attack(text, outside, fenced=True)


@pytest.mark.parametrize("client", [None, JSON_MODE], ids=["text", "JSON"])
@pytest.mark.parametrize("text", attacks.PYTHON)
async def test_a_hostile_reply_changes_nothing_and_ends(
    text: str, client: Sampling | None, outside: Outside
) -> None:
    await attack(text, outside, fenced=False, client=client)


@pytest.mark.parametrize("text", batched(attacks.EXPRESSIONS), ids=lambda text: text[:60])
async def test_hostile_expressions_change_nothing_and_end(text: str, outside: Outside) -> None:
    await attack(text, outside, fenced=True)
