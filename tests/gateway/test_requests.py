"""Whole requests that real use brought up, through a proxy of their own."""

from collections.abc import Iterator

import pytest

from tests.proxy import Proxy
from tests.request_cases import Case, cases, config, send
from tests.upstream import Upstream


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    made = config(upstream.url.removesuffix("/v1"))
    with Proxy(made, tmp_path_factory.mktemp("proxy"), ledger=False) as running:
        yield running


@pytest.mark.parametrize("case", cases())
def test_a_request_gets_what_its_case_expects(proxy: Proxy, upstream: Upstream, case: Case) -> None:
    upstream.play(case.script)
    responses = [
        send(proxy.http, proxy.url, proxy.master_key, request, case.timeout_s)
        for request in case.requests
    ]
    case.check(responses, upstream.calls)
