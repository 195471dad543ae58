"""Errors on every route: the provider's words, without keys and tracebacks."""

from typing import Any, Final

import pytest

from tests.proxy import Proxy
from tests.upstream import (
    CLOSED,
    MALFORMED,
    Fault,
    Script,
    Status,
    Upstream,
    always,
)

QUESTION: Final = [{"role": "user", "content": "What is 6 times 7?"}]
ROUTES: Final[dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": {"messages": QUESTION},
    "/v1/messages": {"messages": QUESTION, "max_tokens": 50},
    "/v1/responses": {"input": "What is 6 times 7?"},
    "/v1/completions": {"prompt": "What is 6 times 7?"},
}
TRACEBACK: Final = (
    'Traceback (most recent call last):\n  File "/srv/host/engine.py", line 7, in step'
)
LOOKS_LIKE_A_KEY: Final = "f81d4fae7dec11d0a76500a0c91e6bf6"
FAULTS: Final[dict[str, Fault]] = {
    "a host's traceback": Status(500, TRACEBACK),
    "a traceback below a message": Status(400, f"boom\n{TRACEBACK}"),
    "no message": Status(503, ""),
    "a key": Status(401, f"Incorrect API key provided: {LOOKS_LIKE_A_KEY}"),
    "a closed connection": CLOSED,
    "malformed JSON": MALFORMED,
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("route", ROUTES)
def test_no_traceback_and_no_key(
    proxy: Proxy, upstream: Upstream, route: str, stream: bool
) -> None:
    for name, fault in FAULTS.items():
        upstream.play(Script(fault=always(fault)))
        answer = proxy.post(route, {"model": "re2-base", "stream": stream, **ROUTES[route]})
        assert "error" in answer.text, name
        for forbidden in ("Traceback", "site-packages", 'File "', LOOKS_LIKE_A_KEY):
            assert forbidden not in answer.text, name
