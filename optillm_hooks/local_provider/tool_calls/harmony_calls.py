"""Calls in Harmony, the format of GPT-OSS: messages to a function in the commentary channel."""

from collections.abc import Sequence
from dataclasses import dataclass

from optillm_hooks.local_provider.reasoning import CALL, CHANNEL, END, MESSAGE, RETURN, START
from optillm_hooks.local_provider.tool_calls.base import Schemas, Span, WrittenCall
from optillm_hooks.local_provider.tool_calls.grammar_rules import GrammarRules
from optillm_hooks.local_provider.tool_calls.scanner import Scanner

_CONSTRAIN = "<|constrain|>"


@dataclass(frozen=True, slots=True)
class HarmonyCalls:
    """Calls as Harmony messages; `parse` reads one message: `functions.name` and its content."""

    @property
    def spans(self) -> Sequence[Span]:
        return ()

    @property
    def bare(self) -> Sequence[str]:
        return ()

    @property
    def markers(self) -> Sequence[str]:
        return (START, CHANNEL, MESSAGE, END, CALL, RETURN, _CONSTRAIN)

    def parse(self, body: str, schemas: Schemas) -> Sequence[WrittenCall]:  # noqa: ARG002 (no use)
        scan = Scanner(body)
        name = scan.until(MESSAGE).removeprefix("functions.")
        arguments = scan.json()
        if not scan.done:
            raise ValueError("text after the arguments")
        return [WrittenCall(name, arguments)]

    def rules(self, schemas: Schemas, rules: GrammarRules, *, parallel: bool) -> str:  # noqa: ARG002
        calls: list[str] = []
        for name, schema in schemas.items():
            head = f"{CHANNEL}commentary to=functions.{name} {_CONSTRAIN}json{MESSAGE}"
            calls.append(rules.add(f"{rules.symbol(head)} {rules.json(schema)}"))
        return " | ".join(calls)


HARMONY_CALLS = HarmonyCalls()
