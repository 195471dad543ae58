"""The worker that runs programs with Monty, a Python interpreter without host access.

It is called through `sandbox.ask_worker`. Monty runs in a separate process, so that neither a
program nor an interpreter crash affects the process that serves requests.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from optillm_hooks.types import Json

MAX_PRINTED: Final = 1 << 16
"""Maximum output of a snippet, in bytes."""


MAX_ERROR: Final = 500
_SUCCESS: Final = ("SystemExit", "SystemExit: 0", "SystemExit: None")
"""How a program ends itself, as an error of Monty."""


def load() -> None:
    """Import Monty."""
    import pydantic_monty  # noqa: F401


def answer(request: Mapping[str, Any]) -> Json:
    """Return the output and error of each snippet; all run in one session.

    Fields of the request: `snippets`; `stdin`, which `input()` reads line by line; the limits
    `seconds` and `memory_mb` per snippet; and `program`, the path of Monty's own, or None. A
    snippet that exceeds its time or crashes Monty ends the session. Sleeping takes no time, as the
    limit would not count it.
    """
    from pydantic_monty import CollectStreams, Monty, MontyCrashedError, MontyError

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
    with (
        Monty(max_processes=1, binary_path=request["program"]) as pool,
        pool.checkout(limits=limits, os_policy={"sleep": "zero"}) as session,
    ):
        for snippet in request["snippets"]:
            printed = CollectStreams(MAX_PRINTED)
            error, timed_out, ends = "", False, False
            try:
                session.feed_run(
                    f"{snippet}\nNone",  # or the value of a last expression would be sent back
                    print_callback=printed,
                    external_lookup={"input": read_line},
                )
            except MontyCrashedError as exc:
                timed_out, ends = exc.timed_out, True
                error = f"TimeoutError: {exc}" if timed_out else str(exc)
            except MontyError as exc:
                error = "" if str(exc) in _SUCCESS else str(exc)
                timed_out = error.startswith("TimeoutError")
            except RuntimeError:  # memory ran out in the snippet before, which ended the session
                break
            ran.append(
                {
                    "output": _of(printed.output, "stdout"),
                    "stderr": _of(printed.output, "stderr"),
                    "error": error[:MAX_ERROR],
                    "timed_out": timed_out,
                }
            )
            if ends or timed_out:
                break
    return ran


def _of(output: Sequence[tuple[str, str]], stream: str) -> str:
    return "".join(text for name, text in output if name == stream)
