"""Turns: how the inner calls of all keys share the event loop of the proxy's process.

LiteLLM needs many milliseconds of the loop to set up a call. The calls that a plan makes at once
would hold it for that long together, and everybody else's requests would wait. Therefore calls
begin one at a time, in turn over the keys, and the loop serves whatever else is ready in between.
"""

import asyncio
from collections import deque
from weakref import WeakKeyDictionary

_PASSES = 8
"""Passes of the event loop from one call to the next. An idle loop makes them in no time. In each,
a busy one takes a step of everything that is ready."""


class Turns:
    """The turns of the inner calls on one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """Calls that have not begun, by key; the key whose turn is next comes first."""

        self._counting = False
        """Whether a call has just begun, so that the next one has to wait."""

    async def wait(self, key: str) -> None:
        """Wait for the turn of a call of `key`. A call that comes alone does not wait."""
        if not self._counting:
            self._counting = True
            self._loop.call_soon(self._pass, _PASSES)
            return
        turn = self._loop.create_future()
        self._waiting.setdefault(key, deque()).append(turn)
        await turn

    def _pass(self, left: int) -> None:
        if left:
            self._loop.call_soon(self._pass, left - 1)
        elif self._begin_next():
            self._loop.call_soon(self._pass, _PASSES)
        else:
            self._counting = False

    def _begin_next(self) -> bool:
        """Let a call of the next key begin. Return whether there was one."""
        while self._waiting:
            key = next(iter(self._waiting))
            calls = self._waiting.pop(key)
            turn = calls.popleft()
            if calls:
                self._waiting[key] = calls  # behind the other keys
            if not turn.done():  # not cancelled
                turn.set_result(None)
                return True
        return False


_TURNS: WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = WeakKeyDictionary()


async def wait_for_turn(key: str) -> None:
    """Wait until a call of `key` may begin on the running loop."""
    loop = asyncio.get_running_loop()
    turns = _TURNS.get(loop)
    if turns is None:
        turns = _TURNS[loop] = Turns(loop)
    await turns.wait(key)
