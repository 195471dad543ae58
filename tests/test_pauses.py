"""What a `retry-after` header asks for."""

import time
from email.utils import formatdate

import pytest

from optillm_hooks.pauses import asked_pause_s


@pytest.mark.parametrize(("told", "seconds"), [("7", 7.0), ("0.5", 0.5), ("0", 0.0)])
def test_a_number_is_one_of_seconds(told: str, seconds: float) -> None:
    assert asked_pause_s(told) == seconds


def test_a_date_is_when_the_pause_ends() -> None:
    ahead = asked_pause_s(formatdate(time.time() + 3600, usegmt=True))
    assert ahead is not None
    assert 0 < ahead <= 3600
    assert asked_pause_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0


@pytest.mark.parametrize("told", [None, "", "soon", "-5", "nan", "inf", "32 Jan"])
def test_what_is_neither_asks_for_nothing(told: str | None) -> None:
    assert asked_pause_s(told) is None
