"""Imported by the process of `tests.preloaded`: FastAPI works out the routes of LiteLLM's proxy.

It would do so at the first request of each proxy, for half a second of CPU time.
"""

from typing import Final

from litellm.proxy.proxy_server import app

_NOWHERE: Final = {"type": "http", "method": "GET", "path": "/no-such-route", "headers": []}

for route in app.routes:
    route.matches(_NOWHERE)
