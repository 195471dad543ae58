"""Shutdown: plans under way return their best answer so far while LiteLLM still waits for them.

LiteLLM waits for `GRACEFUL_SHUTDOWN_TIMEOUT` seconds once a worker gets SIGTERM, or is asked to
drain (`/health/drain`).
"""

import asyncio
import signal
import threading
from types import FrameType
from typing import Final

from litellm.proxy.shutdown.graceful_shutdown_manager import GracefulShutdownManager

from optillm_hooks.gateway.deployments import proxy_module
from optillm_hooks.gateway.host_limits import in_time_for
from optillm_hooks.gateway.shadow import SHADOWS
from optillm_hooks.pipeline.running import RUNNING, Running

_EVERY_S: Final = 0.5
"""How often it is looked whether LiteLLM drains."""


def watch_for_shutdown() -> None:
    """Begin to watch for the end of this process, if it runs the proxy in its main thread."""
    if proxy_module() is None or threading.current_thread() is not threading.main_thread():
        return
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return  # nothing is served yet
    hurry_when_draining(RUNNING)
    before = signal.getsignal(signal.SIGTERM)

    def told(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(hurry, RUNNING)
        if callable(before):
            before(number, frame)

    if callable(before):  # the server's own; without one, the process ends at once
        signal.signal(signal.SIGTERM, told)


def hurry_when_draining(running: Running) -> None:
    """Hurry the plans as soon as LiteLLM drains this worker, which no event tells of."""
    if GracefulShutdownManager.is_shutting_down():
        hurry(running)
    else:
        asyncio.get_running_loop().call_later(_EVERY_S, hurry_when_draining, running)


def hurry(running: Running) -> None:
    """Give the plans until shortly before LiteLLM ends what still runs, and stop the shadows."""
    SHADOWS.stop()
    left = max(0.0, in_time_for(GracefulShutdownManager.get_timeout()))
    running.hurry(asyncio.get_running_loop().time() + left)
