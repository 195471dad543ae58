"""The tools of one request, in a model's tool-call format."""

import json
import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optillm_hooks.errors import RequestRejected
from optillm_hooks.local_provider.tool_calls.base import CallFormat, WrittenCall
from optillm_hooks.local_provider.tool_calls.grammar_rules import GrammarRules
from optillm_hooks.local_provider.tool_calls.scanner import CutOff
from optillm_hooks.types import ToolCall

_ID_LETTERS = string.ascii_letters + string.digits

_UNREADABLE = (AttributeError, KeyError, TypeError, ValueError, RecursionError)
"""What reading a call, or a schema that is not checked before, may raise."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of one request, and the model's tool-call format."""

    form: CallFormat
    schemas: Mapping[str, Mapping[str, Any]]
    """JSON schema of the arguments by function name."""

    parallel: bool = True

    def rules(self, names: Sequence[str], symbol: Callable[[str], str]) -> str:
        """Return the grammar rule `calls`: one or more calls of the functions `names`.

        `symbol` returns a marker as a grammar symbol.

        Raises:
            RequestRejected: the format cannot express a schema, or it is none.
        """
        rules = GrammarRules(symbol)
        schemas = {name: self.schemas[name] for name in names}
        try:
            calls = self.form.rules(schemas, rules, parallel=self.parallel)
        except _UNREADABLE as exc:
            raise RequestRejected(
                "tools cannot be enforced: the parameters of a function are no valid JSON schema",
                param="tools",
            ) from exc
        return f"calls: {calls}\n{rules}"

    def read(self, written: str) -> tuple[ToolCall, ...]:
        """Return the calls in `written`; none unless it consists of calls only."""
        try:
            calls = tuple(map(self.call, self.form.parse(written, self.schemas)))
        except _UNREADABLE:
            return ()
        return calls if self.parallel else calls[:1]

    def is_cut(self, written: str) -> bool:
        """Return True if `written` is the beginning of a call that ends inside a string."""
        try:
            self.form.parse(written, self.schemas)
        except CutOff:
            return True
        except _UNREADABLE:
            pass
        return False

    def call(self, written: WrittenCall) -> ToolCall:
        """Return `written` as a call; raise TypeError or ValueError if it is not one."""
        name, arguments, call_id = written
        if not isinstance(arguments, dict) or name not in self.schemas:
            raise ValueError("not a call of one of these tools")
        return ToolCall(call_id or new_id(), name, json.dumps(arguments, allow_nan=False))


def new_id() -> str:
    """Return an id for a call: nine letters or digits, all that Mistral's templates accept."""
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(9))
