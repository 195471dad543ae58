"""The whole product from outside: a real proxy, a real client, a scripted provider."""

from collections.abc import Iterator

import pytest

from tests.upstream import Upstream


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_alive(upstream: Upstream) -> Iterator[None]:
    """After a test, whatever it was, no call to the provider may go on."""
    yield
    upstream.wait_until(lambda u: not u.alive, within_s=2)
