"""The command line, `optillm-hooks`."""

import argparse
import inspect
import logging
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from types import FrameType
from typing import Final, Protocol

from optillm_hooks.commands import approaches, check, convert, demo, estimate, eval, schema, serve
from optillm_hooks.config_files import CannotRun
from optillm_hooks.registry import OWN_PACKAGE


class Command(Protocol):
    """A module of `commands`. Its docstring is its description.

    It imports the gateway and other large modules when it runs, so that `--help` is quick.
    """

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None:
        """Declare the command's arguments."""
        ...

    def run(self, given: argparse.Namespace, /) -> int:
        """Run the command and return its exit status.

        Raises:
            CannotRun: it cannot.
        """
        ...


COMMANDS: Final[Mapping[str, Command]] = {
    "serve": serve,
    "demo": demo,
    "check": check,
    "approaches": approaches,
    "estimate": estimate,
    "eval": eval,
    "convert": convert,
    "schema": schema,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 130 after SIGINT or SIGTERM.

    Args:
        arguments: those of the command line; None are those of this process.
    """
    given, unknown = parser().parse_known_args(arguments)
    if unknown:
        given.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    # What is loaded logs as it does in a proxy; a command says such things in its own way.
    logging.getLogger("optillm_hooks").addHandler(logging.NullHandler())
    try:
        with _terminated_as_interrupted():
            return COMMANDS[given.command].run(given)
    except CannotRun as exc:
        sys.stderr.write(f"{given.command}: {exc}\n")
        return 1
    except BrokenPipeError:  # what reads the output has seen enough, as `head` has
        return 0
    except KeyboardInterrupt:
        return 130


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM raise `KeyboardInterrupt` in the block, which so ends the processes it began."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    made = argparse.ArgumentParser(
        prog="optillm-hooks",
        description="Inference-time methods for every model behind a LiteLLM proxy.",
        epilog="optillm-hooks COMMAND --help explains a command.",
    )
    made.add_argument("--version", action="version", version=f"%(prog)s {version(OWN_PACKAGE)}")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        description = inspect.getdoc(command) or ""
        of_command = commands.add_parser(
            name,
            help=description.splitlines()[0],
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        of_command.set_defaults(parser=of_command)  # whose usage an unknown option shows
        command.add_arguments(of_command)
    return made
