"""Calls as Python would write them, and in the notation of Gemma."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optillm_hooks.errors import RequestRejected
from optillm_hooks.local_provider.tool_calls.base import Schemas, Span, WrittenCall
from optillm_hooks.local_provider.tool_calls.grammar_rules import (
    GrammarRules,
    is_text,
    properties,
)
from optillm_hooks.local_provider.tool_calls.literals import LiteralReader
from optillm_hooks.local_provider.tool_calls.schema import (
    alternatives,
    retyped,
    types_of,
    with_definitions,
)

_LIST_KEYWORDS = frozenset(
    {"type", "items", "title", "description", "default", "examples", "$defs", "definitions"}
)
"""Keywords of a list's schema that Gemma's notation can follow."""


def _retyped(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return `arguments` without quotation marks around values that are no strings."""
    known = schema.get("properties", {})
    return {
        key: retyped(value, with_definitions(known[key], schema))
        if isinstance(known.get(key), Mapping)
        else value
        for key, value in arguments.items()
    }


@dataclass(frozen=True, slots=True)
class PythonCalls:
    """Calls as Python expressions: a list of them, or one in each line."""

    spans: tuple[Span, ...] = ()
    bare: tuple[str, ...] = ()
    listed: bool = True
    """Whether models write the calls as a list."""

    @property
    def markers(self) -> Sequence[str]:
        return [marker for span in self.spans for marker in span[:2] if marker]

    def parse(self, body: str, schemas: Schemas) -> Sequence[WrittenCall]:
        reader = LiteralReader(body)
        listed = reader.take("[")
        calls: list[WrittenCall] = []
        while not (reader.take("]") if listed else reader.done):
            calls.append(self._call(reader, schemas))
            if not (reader.take(",") or reader.take(";")) and listed:
                reader.expect("]")
                break
        if not reader.done:
            raise ValueError("text after the calls")
        return calls

    def _call(self, reader: LiteralReader, schemas: Schemas) -> WrittenCall:
        name = reader.name()
        reader.expect("(")
        arguments = reader.pairs("=", ")")
        return WrittenCall(name, _retyped(arguments, schemas.get(name, {})))

    def rules(self, schemas: Schemas, rules: GrammarRules, *, parallel: bool) -> str:
        call = rules.choice([self._rule(name, schemas[name], rules) for name in schemas])
        span = self.spans[0] if self.spans and not self.bare else Span("", "")
        separator = '", "' if self.listed else '"\\n"'
        calls = f"{call} {f'({separator} {call})*' if parallel else ''}"
        if self.listed:
            calls = f'"[" {calls} "]"'
        if not span.opening:
            return calls
        gap = "" if self.listed else '"\\n"'
        return f"{rules.symbol(span.opening)} {gap} {calls} {gap} {rules.symbol(span.closing)}"

    def _rule(self, name: str, schema: Mapping[str, Any], rules: GrammarRules) -> str:
        arguments = [
            (f"{json.dumps(f'{found.name}=')} {self._value(found.schema, rules)}", found.required)
            for found in properties(schema)
        ]
        inside = rules.in_order(arguments, '", "')
        return rules.add(f'{json.dumps(f"{name}(")} {inside} ")"')

    def _value(self, schema: Mapping[str, Any], rules: GrammarRules) -> str:
        if types_of(schema) == {"boolean"} and not schema.keys() & {"enum", "const"}:
            return '("True" | "False")'
        return rules.json(schema)


@dataclass(frozen=True, slots=True)
class GemmaCalls:
    """Calls as `call:name{key:value}` between markers, with a quotation mark of their own."""

    opening: str
    closing: str
    quote: str

    @property
    def spans(self) -> Sequence[Span]:
        return (Span(self.opening, self.closing),)

    @property
    def bare(self) -> Sequence[str]:
        return ()

    @property
    def markers(self) -> Sequence[str]:
        return (self.opening, self.closing, self.quote)

    def parse(self, body: str, schemas: Schemas) -> Sequence[WrittenCall]:
        reader = LiteralReader(body, [self.quote])
        reader.expect("call:")
        name = reader.name()
        reader.expect("{")
        arguments = reader.pairs(":", "}")
        if not reader.done:
            raise ValueError("text after the call")
        return [WrittenCall(name, _retyped(arguments, schemas.get(name, {})))]

    def rules(self, schemas: Schemas, rules: GrammarRules, *, parallel: bool) -> str:
        call = rules.choice([self._rule(name, schemas[name], rules) for name in schemas])
        tagged = rules.add(f"{rules.symbol(self.opening)} {call} {rules.symbol(self.closing)}")
        return f"{tagged}+" if parallel else tagged

    def _rule(self, name: str, schema: Mapping[str, Any], rules: GrammarRules) -> str:
        return rules.add(f"{json.dumps(f'call:{name}')} {self._object(schema, rules)}")

    def _object(self, schema: Mapping[str, Any], rules: GrammarRules) -> str:
        pairs = [
            (f"{json.dumps(f'{found.name}:')} {self._value(found.schema, rules)}", found.required)
            for found in properties(schema)
        ]
        return f'"{{" {rules.in_order(pairs, json.dumps(","))} "}}"'

    def _value(self, schema: Mapping[str, Any], rules: GrammarRules) -> str:
        """Return the name of a rule for a value; strings have the format's own quotation marks."""
        return rules.choice([self._option(one, rules) for one in alternatives(schema)])

    def _option(self, schema: Mapping[str, Any], rules: GrammarRules) -> str:
        """Return an expression for a value of one type."""
        if is_text(schema):
            return f"{rules.symbol(self.quote)} {rules.text_before(self.quote, schema)}"
        kind, items = schema["type"], schema.get("items")
        if kind == "array" and isinstance(items, Mapping) and not schema.keys() - _LIST_KEYWORDS:
            item = self._value(with_definitions(items, schema), rules)
            return f'"[" ({item} ("," {item})*)? "]"'
        if kind == "object" and schema.get("properties"):
            return self._object(schema, rules)
        if kind in ("array", "object"):
            raise RequestRejected(
                "tools cannot be enforced: in this model's tool-call format, a list needs the "
                "schema of its items, and an object its properties, without other keywords",
                param="tools",
            )
        return rules.json(schema)


PYTHON = PythonCalls(bare=("[",))
"""Llama 3.2 and Gemma 3 with the template for it, ToolACE."""

LLAMA_4 = PythonCalls((Span("<|python_start|>", "<|python_end|>", closed_by_end=True),), ("[",))
LFM = PythonCalls((Span("<|tool_call_start|>", "<|tool_call_end|>"),))
OLMO = PythonCalls((Span("<function_calls>", "</function_calls>"),), listed=False)
TOOL_CODE = PythonCalls((Span("```tool_code", "```"),), listed=False)
GEMMA_4 = GemmaCalls("<|tool_call>", "<tool_call|>", '<|"|>')
FUNCTION_GEMMA = GemmaCalls("<start_function_call>", "<end_function_call>", "<escape>")
