"""Runs SMT-LIB 2 scripts with Z3 in a worker process.

A tokenizer splits the script into commands and serialises each in a plain form, so that Z3 parses
exactly the tokens that were checked. Commands that declare, assert, optimise and query are allowed;
options, output commands and settings that we choose ourselves are dropped; everything else (files,
tactics, proofs) is an error. Z3 executes the allowed commands one by one.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final, TypedDict

from optillm_hooks.sandbox.worker import no_more_files

MAX_NESTED: Final = 1000
MAX_CHECKS: Final = 16
MAX_NAMES: Final = 500
MAX_SHOWN: Final = 2000
"""Maximum length of one value, in characters; the rest is truncated."""

_TOKEN: Final = re.compile(
    r"""(?P<blank>[ \t\r\n]+|;[^\n]*)
      |(?P<paren>[()])
      |(?P<string>"(?:[^"\x00-\x08\x0b\x0c\x0e-\x1f]|"")*")
      |(?P<quoted>\|[\x20-\x5b\x5d-\x7b\x7d\x7e\n\r\t]*\|)
      |(?P<atom>(?:\#x[0-9a-fA-F]+|\#b[01]+|:?[A-Za-z0-9~!@$%^&*_+=<>.?/\-]+))""",
    re.VERBOSE,
)
_ASSERTS: Final = frozenset(
    {
        "assert",
        "assert-soft",
        "minimize",
        "maximize",
        "push",
        "pop",
        "declare-const",
        "declare-fun",
        "declare-sort",
        "declare-datatype",
        "declare-datatypes",
        "define-const",
        "define-fun",
        "define-fun-rec",
        "define-funs-rec",
        "define-sort",
    }
)
_CHECKS: Final = frozenset({"check-sat", "check-sat-assuming"})
_VALUES: Final = frozenset({"get-value", "eval", "simplify"})
_IGNORED: Final = frozenset(
    {
        "set-logic",
        "set-info",
        "set-option",
        "echo",
        "exit",
        "get-model",
        "get-unsat-core",
        "get-unsat-assumptions",
        "get-objectives",
        "get-info",
        "get-assertions",
        "get-assignment",
    }
)
_ALLOWED_OPTION: Final = ["set-option", ":opt.priority"]


class ScriptError(ValueError):
    """The script is not supported or invalid; the message gives the reason."""


class Check(TypedDict):
    """The result of one `check-sat`."""

    status: str
    """sat, unsat or unknown."""

    reason: str
    """The reason for unknown; otherwise ""."""

    model: dict[str, str]
    """If sat: the value of each constant and function, as printed by Z3."""

    core: list[str]
    """If unsat: the unsat core, that is, named assertions that contradict each other."""

    objectives: list[str]
    """Each objective with its optimum or known bounds."""

    values: list[str]
    """Results of the queries after the check."""


def load() -> None:
    """Import Z3."""
    import z3  # noqa: F401


def answer(request: Mapping[str, object]) -> dict[str, object]:
    """Return `{"checks": [...]}` for a request `{"text": script, "seconds": ...}`, or `{"error"}`.

    A script without a `check-sat` is checked once, at its end.
    """
    try:
        checks = run_script(str(request["text"]), float(str(request["seconds"])))
    except ScriptError as exc:
        return {"error": str(exc)[:MAX_SHOWN]}
    return {"checks": checks}


def commands(script: str) -> list[list[str]]:
    """Return the commands of `script`, each as a list of tokens, parentheses included.

    Raises:
        ScriptError: it is not a sequence of parenthesised commands, or is nested too deeply.
    """
    read: list[list[str]] = []
    depth = 0
    for token in _tokens(script):
        if depth == 0:
            if token != "(":  # noqa: S105 (a parenthesis)
                raise ScriptError(f"expected '(' at the start of a command, found {token[:40]!r}")
            read.append([])
        read[-1].append(token)
        depth += {"(": 1, ")": -1}.get(token, 0)
        if depth > MAX_NESTED:
            raise ScriptError(f"terms are nested more than {MAX_NESTED} deep")
    if depth:
        raise ScriptError(f"{depth} closing parentheses are missing at the end of the script")
    return read


def _tokens(script: str) -> Iterator[str]:
    at = 0
    while at < len(script):
        found = _TOKEN.match(script, at)
        if found is None:
            raise ScriptError(f"unreadable text: {script[at : at + 20]!r}")
        at = found.end()
        if found.lastgroup == "string":
            yield re.sub(r"[^\x00-\x7f]", lambda c: f"\\u{{{ord(c[0]):x}}}", found[0])
        elif found.lastgroup != "blank":
            yield found[0]


def run_script(script: str, seconds: float) -> list[Check]:
    """Run all checks of `script` in about `seconds`; return their results.

    Raises:
        ScriptError: a command is not allowed, or Z3 rejects it.
    """
    wanted = [command for command in commands(script) if not _is_ignored(command)]
    for command in wanted:
        if command[1] not in _ASSERTS | _CHECKS | _VALUES and command[1:3] != _ALLOWED_OPTION:
            raise ScriptError(f"the command {command[1][:40]!r} is not available")
    if not any(command[1] in _CHECKS for command in wanted):
        wanted.append(["(", "check-sat", ")"])
    session = _Session(time.monotonic() + seconds)
    for command in wanted:
        session.run(command)
    return session.checks


def _is_ignored(command: Sequence[str]) -> bool:
    return command[1] in _IGNORED and command[1:3] != _ALLOWED_OPTION


class _Session:
    """One Z3 context that executes commands one by one."""

    def __init__(self, until: float) -> None:
        import z3

        no_more_files()
        self.checks: list[Check] = []
        self._z3 = z3
        self._context = z3.Context()
        self._until = until
        self._labels: dict[str, None] = {}
        self._optimises = False
        self._eval("(set-option :produce-unsat-cores true)")
        self._eval("(set-option :smt.core.minimize true)")

    def run(self, command: Sequence[str]) -> None:
        head = command[1]
        if head in _CHECKS:
            self._check(plain(command))
        elif head in _VALUES:
            self._query(command)
        else:
            labels = (name for mark, name in pairwise(command) if mark == ":named")
            self._labels |= dict.fromkeys(labels)
            self._optimises |= head in ("minimize", "maximize", "assert-soft")
            self._eval(plain(command))

    def _check(self, command: str) -> None:
        if len(self.checks) == MAX_CHECKS:
            raise ScriptError(f"the script has more than {MAX_CHECKS} checks")
        left_ms = int(1000 * (self._until - time.monotonic()))
        check = Check(status="unknown", reason="", model={}, core=[], objectives=[], values=[])
        self.checks.append(check)
        if left_ms <= 0:
            check["reason"] = "timeout"
            return
        self._eval(f"(set-option :timeout {left_ms})")
        check["status"] = self._eval(command)
        if check["status"] not in ("sat", "unsat", "unknown"):
            raise ScriptError(f"Z3 says {clip(check['status'])!r} to {command[:200]}")
        if check["status"] == "unknown":
            why = parts(list(_tokens(self._eval("(get-info :reason-unknown)"))))[-1][0].strip('"')
            check["reason"] = "timeout" if re.search("timeout|cancel", why) else why
        elif check["status"] == "unsat":
            core = {_shown(part) for part in self._ask("(get-unsat-core)")}
            check["core"] = [name for name in self._labels if name in core]
        else:
            check["model"] = self._model()
        if self._optimises and check["status"] != "unsat":
            check["objectives"] = [_shown(part) for part in self._ask("(get-objectives)")[1:]]

    def _query(self, command: Sequence[str]) -> None:
        """Record the result of a query; a query without a model is ignored."""
        if self.checks and self.checks[-1]["status"] == "sat":
            self.checks[-1]["values"] += [_shown([*_tokens(self._eval(plain(command)))])]

    def _model(self) -> dict[str, str]:
        definitions = (parts(part) for part in self._ask("(get-model)") if part[1] == "define-fun")
        model = {
            plain([*name, *arguments] if len(arguments) > 2 else name): _shown(value)
            for _, name, arguments, _, value in definitions
            if name[0] not in self._labels
        }
        return dict(sorted(model.items())[:MAX_NAMES])

    def _ask(self, query: str) -> list[list[str]]:
        """Return the elements of the list that Z3 prints for `query`.

        Irrational numbers are truncated decimals that end in a question mark.
        """
        printed = self._eval(query)
        if "root-obj" in printed:
            self._eval("(set-option :pp.decimal true)")
            printed = self._eval(query)
            self._eval("(set-option :pp.decimal false)")
        return parts(list(_tokens(printed)))

    def _eval(self, command: str) -> str:
        """Return the output of Z3 for `command`."""
        try:
            printed = str(self._z3.Z3_eval_smtlib2_string(self._context.ref(), command))
        except self._z3.Z3Exception as exc:
            raise ScriptError(_message(exc.value, command)) from None
        if printed.startswith("(error"):
            raise ScriptError(_message(printed, command))
        return printed.strip()


def plain(tokens: Sequence[str]) -> str:
    """Return `tokens` as text that parses to the same tokens."""
    return "".join(
        after if before == "(" or after == ")" else f" {after}"
        for before, after in pairwise(("(", *tokens))
    )


def parts(tokens: Sequence[str]) -> list[list[str]]:
    """Return the elements of a parenthesised list, each as a list of tokens."""
    elements: list[list[str]] = []
    depth = 0
    for token in tokens[1:-1]:
        if depth == 0:
            elements.append([])
        elements[-1].append(token)
        depth += {"(": 1, ")": -1}.get(token, 0)
    return elements


def clip(text: str) -> str:
    """Return `text`, truncated to `MAX_SHOWN` characters."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} ..."


def _shown(tokens: Sequence[str]) -> str:
    return clip(plain(tokens))


def _message(error: object, command: str) -> str:
    text = error.decode(errors="replace") if isinstance(error, bytes) else str(error)
    found = re.search(r"line \d+ column \d+: ", text)
    said = text[found.end() :].rstrip().removesuffix(")").removesuffix('"') if found else text
    return f"{said.strip()} in {command[:200]}"
