"""Calls as the name of a function, a marker, and the arguments as JSON."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optillm_hooks.local_provider.tool_calls.base import Schemas, Span, WrittenCall
from optillm_hooks.local_provider.tool_calls.grammar_rules import GrammarRules
from optillm_hooks.local_provider.tool_calls.scanner import Scanner

_FENCE = "```json"
_NUMBER = re.compile(r":[0-9]+\Z")


@dataclass(frozen=True, slots=True)
class NamedCalls:
    """Calls as a name, a marker and a JSON object of arguments."""

    opening: str
    closing: str
    """Empty: the calls are the rest of the reply."""

    call: str
    """The marker before each call, which may be the opening marker; empty: one call per span."""

    sign: str
    """The marker between the name and the arguments."""

    end: str = ""
    """The marker after each call."""

    numbered: bool = False
    """Whether the name is written as `functions.name:0`, which is the call's id."""

    kind: str = ""
    """What is written before the name, with its marker: the arguments are in a fence then."""

    id_sign: str = ""
    """The marker between the name and an id."""

    @property
    def spans(self) -> Sequence[Span]:
        return (Span(self.opening, self.closing),)

    @property
    def bare(self) -> Sequence[str]:
        return ()

    @property
    def markers(self) -> Sequence[str]:
        all_markers = (self.opening, self.closing, self.call, self.sign, self.end, self.id_sign)
        return [marker for marker in (*all_markers, self.kind) if marker]

    def parse(self, body: str, schemas: Schemas) -> Sequence[WrittenCall]:  # noqa: ARG002 (typed)
        scan = Scanner(body)
        calls = [self._call(scan, begun=self.call == self.opening)]
        while self.call and not scan.done:
            calls.append(self._call(scan, begun=False))
        if not scan.done:
            raise ValueError("text after the calls")
        return calls

    def _call(self, scan: Scanner, *, begun: bool) -> WrittenCall:
        if not begun:
            scan.expect(self.call)
        name = scan.until(_FENCE if self.kind else self.sign).rpartition(self.kind or "\n")[2]
        name, _, call_id = map(str.strip, name.partition(self.id_sign or "\n"))
        arguments = scan.json()
        if self.kind:
            scan.expect("```")
        if not scan.done:
            scan.expect(self.end)
        if self.numbered:
            call_id, name = name, _NUMBER.sub("", name).removeprefix("functions.")
        return WrittenCall(name, arguments, call_id or None)

    def rules(self, schemas: Schemas, rules: GrammarRules, *, parallel: bool) -> str:
        call = rules.choice([self._rule(name, schemas[name], rules) for name in schemas])
        opening = "" if self.call == self.opening else rules.symbol(self.opening)
        closing = rules.symbol(self.closing) if self.closing else ""
        if not self.call:
            tagged = rules.add(f"{opening} {call} {closing}")
            return f'{tagged} ("\\n" {tagged})*' if parallel else tagged
        more = f"({json.dumps(self._between)} {call})*" if parallel else ""
        return f"{opening} {call} {more} {closing}"

    @property
    def _between(self) -> str:
        return "\n" if self.kind else ""

    def _rule(self, name: str, schema: Mapping[str, Any], rules: GrammarRules) -> str:
        symbols = [rules.symbol(self.call)] if self.call else []
        symbols += [rules.symbol(self.kind)] if self.kind else []
        if self.numbered:
            symbols += [json.dumps(f"functions.{name}:"), "/[0-9]{1,3}/"]
        else:
            symbols += [json.dumps(name)]
        if self.id_sign:
            symbols += [rules.symbol(self.id_sign), "/[a-zA-Z0-9]{9}/"]
        symbols += [json.dumps(f"\n{_FENCE}\n")] if self.kind else [rules.symbol(self.sign)]
        symbols += [rules.json(schema)]
        symbols += ['"\\n```"'] if self.kind else []
        symbols += [rules.symbol(self.end)] if self.end else []
        return rules.add(" ".join(symbols))


MISTRAL_NAMED = NamedCalls("[TOOL_CALLS]", "", call="[TOOL_CALLS]", sign="[ARGS]")
MISTRAL_WITH_IDS = NamedCalls(
    "[TOOL_CALLS]", "", call="[TOOL_CALLS]", sign="[ARGS]", id_sign="[CALL_ID]"
)
KIMI = NamedCalls(
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    call="<|tool_call_begin|>",
    sign="<|tool_call_argument_begin|>",
    end="<|tool_call_end|>",
    numbered=True,
)
_BAR = "\uff5c"
DEEPSEEK = NamedCalls(
    f"<{_BAR}tool▁calls▁begin{_BAR}>",
    f"<{_BAR}tool▁calls▁end{_BAR}>",
    call=f"<{_BAR}tool▁call▁begin{_BAR}>",
    sign=f"<{_BAR}tool▁sep{_BAR}>",
    end=f"<{_BAR}tool▁call▁end{_BAR}>",
)
"""DeepSeek V3.1."""

DEEPSEEK_FENCED = NamedCalls(
    DEEPSEEK.opening,
    DEEPSEEK.closing,
    call=DEEPSEEK.call,
    sign=DEEPSEEK.sign,
    end=DEEPSEEK.end,
    kind=f"function{DEEPSEEK.sign}",
)
"""DeepSeek V3 and R1."""

FUNCTIONARY = NamedCalls("<function=", "</function>", call="", sign=">")
