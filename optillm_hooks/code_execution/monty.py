"""The worker that runs programs with Monty, a Python interpreter without host access.

It is called through `sandbox.ask_worker`. Monty runs in a separate process, so that neither a
program nor an interpreter crash affects the process that serves requests.
"""

from collections.abc import Mapping
from typing import Any, Final

from optillm_hooks.types import Json

MAX_PRINTED: Final = 1 << 16
"""Maximum output of a snippet, in bytes."""


def load() -> None:
    """Import Monty."""
    import pydantic_monty  # noqa: F401


def answer(request: Mapping[str, Any]) -> Json:
    """Return the output and error of each snippet; all run in one session.

    Fields of the request: `snippets`; `stdin`, which `input()` reads line by line; and the limits
    `seconds` and `memory_mb` per snippet. A snippet that exceeds its time ends the session.
    """
    from pydantic_monty import CollectString, Monty, MontyError

    lines = iter(str(request["stdin"]).splitlines())

    def read_line(*_prompt: object) -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError("EOF when reading a line")
        return line

    limits: Any = {
        "max_feed_duration_secs": request["seconds"],
        "max_memory": request["memory_mb"] << 20,
    }
    ran: list[Json] = []
    with Monty(max_processes=1) as pool, pool.checkout(limits=limits) as session:
        for snippet in request["snippets"]:
            printed = CollectString(MAX_PRINTED)
            error = ""
            try:
                session.feed_run(
                    snippet, print_callback=printed, external_lookup={"input": read_line}
                )
            except MontyError as exc:
                error = str(exc)[:500]
            ran.append({"output": printed.output, "error": error})
            if error.startswith("TimeoutError"):
                break
    return ran
