"""What every tool-call format has: its markers, a parser, and the grammar of its calls."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from optillm_hooks.local_provider.tool_calls.grammar_rules import GrammarRules

Schemas = Mapping[str, Mapping[str, Any]]
"""JSON schema of the arguments by function name."""


class WrittenCall(NamedTuple):
    """A call as the model wrote it; `id` is None if the format has no ids."""

    name: str
    arguments: Any
    id: str | None = None


class Span(NamedTuple):
    """The markers around calls in a reply."""

    opening: str
    closing: str = ""
    """Empty: the calls are the rest of the reply."""

    inside: bool = False
    """Whether the opening marker is itself part of the call."""

    closed_by_end: bool = False
    """Whether the end of the reply closes the span too."""


class CallFormat(Protocol):
    """A tool-call format."""

    @property
    def spans(self) -> Sequence[Span]:
        """The markers around calls, the usual ones first."""

    @property
    def bare(self) -> Sequence[str]:
        """A reply that begins with one of these may consist of calls only, without markers."""

    @property
    def markers(self) -> Sequence[str]:
        """All markers of the format: special tokens among them must stay in the text."""

    def parse(self, body: str, schemas: Schemas) -> Sequence[WrittenCall]:
        """Return the calls in the text of a span.

        Raises:
            CutOff: the text ends inside a string.
            KeyError, TypeError, ValueError, RecursionError: it does not consist of calls only.
        """

    def rules(self, schemas: Schemas, rules: GrammarRules, *, parallel: bool) -> str:
        """Return the right side of a grammar rule: one or more calls, only one unless `parallel`.

        Raises:
            RequestRejected: the format cannot express a schema.
        """
