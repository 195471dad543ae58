"""Calls as JSON objects that hold the name and the arguments of a function."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optillm_hooks.local_provider.tool_calls.base import Schemas, Span, WrittenCall
from optillm_hooks.local_provider.tool_calls.grammar_rules import GrammarRules
from optillm_hooks.local_provider.tool_calls.scanner import Scanner


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """Calls as JSON objects between markers."""

    opening: str
    closing: str = ""
    """Empty: the calls are the rest of the reply."""

    name: str = "name"
    """The key of the function's name; empty: the only key of the object is the name."""

    arguments: str = "arguments"
    number: str = ""
    """The key of the call's number, if the format has one."""

    listed: bool = False
    """Whether all calls are in one JSON array."""

    bare: tuple[str, ...] = ()
    gap: str = "\n"
    """What models write between the markers and the JSON."""

    intro: str = ""
    """A second marker, behind the opening one."""

    @property
    def spans(self) -> Sequence[Span]:
        return (Span(self.opening, self.closing),) if self.opening else ()

    @property
    def markers(self) -> Sequence[str]:
        return [marker for marker in (self.opening, self.closing, self.intro) if marker]

    def parse(self, body: str, schemas: Schemas) -> Sequence[WrittenCall]:  # noqa: ARG002 (typed)
        scan = Scanner(body)
        scan.take(self.intro)
        calls: list[WrittenCall] = []
        while not scan.done:
            value = scan.json()
            calls += map(self._call, value if isinstance(value, list) else [value])
            for separator in (",", ";", self.opening):
                scan.take(separator)
        return calls

    def _call(self, entry: Any) -> WrittenCall:
        if self.name:
            return WrittenCall(entry[self.name], entry[self.arguments])
        ((name, arguments),) = entry.items()
        return WrittenCall(name, arguments)

    def rules(self, schemas: Schemas, rules: GrammarRules, *, parallel: bool) -> str:
        call = rules.choice([self._rule(name, schemas[name], rules) for name in schemas])
        if not self.opening or (self.bare and not self.listed):
            return _listed(call, parallel=parallel) if self.listed else call
        gap = rules.symbol(self.gap) if self.gap else ""
        opening = f"{rules.symbol(self.opening)} {rules.symbol(self.intro) if self.intro else ''}"
        closing = f"{gap} {rules.symbol(self.closing)}" if self.closing else ""
        if self.listed:
            return f"{opening} {gap} {_listed(call, parallel=parallel)} {closing}"
        tagged = rules.add(f"{opening} {gap} {call} {closing}")
        return f'{tagged} ("\\n" {tagged})*' if parallel and self.closing else tagged

    def _rule(self, name: str, schema: Mapping[str, Any], rules: GrammarRules) -> str:
        if not self.name:
            head = f"{{{json.dumps(name)}: "
            return rules.add(f"{json.dumps(head)} {rules.json(schema)} {json.dumps('}')}")
        number = rf'"{{\"{self.number}\": \"" /[0-9]{{1,3}}/ "\", "' if self.number else '"{"'
        head = f"{json.dumps(self.name)}: {json.dumps(name)}, {json.dumps(self.arguments)}: "
        return rules.add(f"{number} {json.dumps(head)} {rules.json(schema)} {json.dumps('}')}")


def _listed(call: str, *, parallel: bool) -> str:
    more = f'(", " {call})*' if parallel else ""
    return f'"[" {call} {more} "]"'


HERMES = JsonCalls("<tool_call>", "</tool_call>")
MISTRAL = JsonCalls("[TOOL_CALLS]", listed=True, gap=" ")
LLAMA = JsonCalls("<|python_tag|>", arguments="parameters", bare=("{",))
XLAM = JsonCalls("", listed=True, bare=("[",))
NEMOTRON = JsonCalls("<TOOLCALL>", "</TOOLCALL>", listed=True, gap="")
HUNYUAN = JsonCalls("<tool_calls>", "</tool_calls>", listed=True, gap="")
"""Also Jamba, and MiniMax M1, which writes the objects without an array."""

PHI = JsonCalls("<|tool_call|>", "<|/tool_call|>", listed=True, gap="")
GRANITE = JsonCalls("<|tool_call|>", listed=True, gap="")
GRANITE_CODE = JsonCalls("<function_call>", gap=" ")
FUNCTOOLS = JsonCalls("functools", listed=True, gap="")
COMMAND = JsonCalls(
    "<|START_ACTION|>",
    "<|END_ACTION|>",
    name="tool_name",
    arguments="parameters",
    number="tool_call_id",
    listed=True,
)
APERTUS = JsonCalls("<|tools_prefix|>", "<|tools_suffix|>", name="", listed=True, gap="")
INTERNLM = JsonCalls("<|action_start|>", "<|action_end|>", intro="<|plugin|>")
GIGACHAT = JsonCalls("<|function_call|>", gap="")
