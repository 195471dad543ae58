"""A worker that does what a test tells it to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from optillm_hooks.sandbox import client

PROBE = """\
import os, resource, sys, time
from pathlib import Path

seen = []

def load():
    pass

def answer(request):
    return eval(request)
"""


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a worker that evaluates its request as Python; its zygote ends with the test."""
    (tmp_path / "probe.py").write_text(PROBE)
    where = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    monkeypatch.setattr(client, "_BOOTSTRAP", where + client._BOOTSTRAP)
    yield "probe"
    if zygote := client._zygotes.pop("probe", None):
        zygote.end(0)
