"""Calls as tags: one for the function, and one for each argument."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optillm_hooks.local_provider.tool_calls.base import Schemas, Span, WrittenCall
from optillm_hooks.local_provider.tool_calls.grammar_rules import (
    GrammarRules,
    Property,
    is_text,
    properties,
)
from optillm_hooks.local_provider.tool_calls.scanner import CutOff, Scanner
from optillm_hooks.local_provider.tool_calls.schema import alternatives, typed, with_definitions

_BLANKS = re.compile(r"\s*")
_NAME = re.compile(r"[^\s<]+")
_IS_STRING = ' string="true"'
_IS_JSON = ' string="false"'


@dataclass(frozen=True, slots=True)
class TaggedCalls:
    """Calls as tags. Arguments are written without quotation marks, so the schema types them."""

    opening: str
    closing: str
    head: str
    """The beginning of a function's tag; empty: the name follows the opening marker."""

    tail: str
    """The end of a function; empty: the closing marker."""

    key: str
    key_end: str
    value: str
    """What stands between the name of an argument and its value."""

    value_end: str
    quote: str = ""
    """The quotation mark around names."""

    padding: str = ""
    """What is written before and after each value."""

    gap: str = "\n"
    """What models write between tags."""

    several: bool = False
    """Whether one span may hold several calls."""

    typed: bool = False
    """Whether each argument says if it is a string."""

    @property
    def spans(self) -> Sequence[Span]:
        usual = Span(self.opening, self.closing)
        if not self.head or self.several:
            return (usual,)
        # Models at times leave the opening marker out.
        return (usual, Span(self.head, self.closing, inside=True, closed_by_end=True))

    @property
    def bare(self) -> Sequence[str]:
        return ()

    @property
    def markers(self) -> Sequence[str]:
        tags = (self.head, self.tail, self.key, self.key_end, self.value, self.value_end)
        return [tag for tag in (self.opening, self.closing, *tags) if tag.strip()]

    def parse(self, body: str, schemas: Schemas) -> Sequence[WrittenCall]:
        scan = Scanner(body)
        calls = [self._call(scan, schemas)]
        while not scan.done:
            if not self.several:
                raise ValueError("text after the call")
            calls.append(self._call(scan, schemas))
        return calls

    def _call(self, scan: Scanner, schemas: Schemas) -> WrittenCall:
        name = self._function_name(scan)
        arguments: dict[str, Any] = {}
        schema = schemas.get(name, {})
        while scan.take(self.key):
            key, _, attributes = scan.until(self.key_end).partition(self.quote or "\n")
            scan.take(self.value)
            known = schema.get("properties", {}).get(key.strip(), {})
            known = with_definitions(known if isinstance(known, Mapping) else {}, schema)
            arguments[key.strip()] = self._read_value(self._value(scan), known, attributes)
        scan.expect(self.tail)
        return WrittenCall(name, arguments)

    def _function_name(self, scan: Scanner) -> str:
        if self.head:
            scan.expect(self.head)
            return scan.until(">").partition(self.quote or "\n")[0].strip()
        found = scan.match(_NAME.match)
        return found[0] if found else ""

    def _value(self, scan: Scanner) -> str:
        """Return the text of a value: up to an end tag that the call goes on after."""
        text, start = scan.text, scan.at
        end = text.find(self.value_end, start)
        while end >= 0 and not self._goes_on(text, end + len(self.value_end)):
            end = text.find(self.value_end, end + 1)
        if end < 0:
            raise CutOff("a value without an end")
        scan.at = end + len(self.value_end)
        return text[start:end].removeprefix(self.padding).removesuffix(self.padding)

    def _goes_on(self, text: str, at: int) -> bool:
        blanks = _BLANKS.match(text, at)
        at = blanks.end() if blanks else at
        tags = [tag for tag in (self.key, self.tail) if tag]
        return at == len(text) or any(text.startswith(tag, at) for tag in tags)

    def _read_value(self, written: str, schema: Mapping[str, Any], attributes: str) -> Any:
        if attributes.startswith(_IS_STRING):
            return written
        return typed(written, {} if attributes.startswith(_IS_JSON) else schema)

    def rules(self, schemas: Schemas, rules: GrammarRules, *, parallel: bool) -> str:
        call = rules.choice([self._rule(name, schemas[name], rules) for name in schemas])
        opening, closing = rules.symbol(self.opening), rules.symbol(self.closing)
        gap = json.dumps(self.gap)
        if self.several:
            more = f"({gap} {call})*" if parallel else ""
            return f"{opening} {gap} {call} {more} {gap} {closing}"
        tagged = rules.add(f"{opening} {gap if self.head else ''} {call} {closing}")
        return f'{tagged} ("\\n" {tagged})*' if parallel else tagged

    def _rule(self, name: str, schema: Mapping[str, Any], rules: GrammarRules) -> str:
        gap = json.dumps(self.gap)
        arguments = rules.in_order(
            [(self._argument(found, rules), found.required) for found in properties(schema)]
        )
        if not self.head:
            return rules.add(f"{json.dumps(name)} {gap} {arguments}")
        head = rules.symbol(f"{self.head}{name}{self.quote}>")
        ending = f" {gap}" if not self.several else ""
        return rules.add(f"{head} {gap} {arguments} {rules.symbol(self.tail)}{ending}")

    def _argument(self, found: Property, rules: GrammarRules) -> str:
        options = [self._value_rule(found.name, one, rules) for one in alternatives(found.schema)]
        return f"{rules.choice(options)} {json.dumps(self.gap)}"

    def _value_rule(self, name: str, schema: Mapping[str, Any], rules: GrammarRules) -> str:
        kind = ""
        if self.typed:
            kind = _IS_STRING if is_text(schema) else _IS_JSON
        between = self.gap if self.value else ""
        head = f"{self.key}{name}{self.quote}{kind}{self.key_end}{between}{self.value}"
        head = rules.symbol(f"{head}{self.padding}")
        end = f"{self.padding}{self.value_end}"
        if is_text(schema):
            return f"{head} {rules.text_before(end, schema)}"
        return f"{head} {rules.json(schema)} {rules.symbol(end)}"


QWEN_CODER = TaggedCalls(
    "<tool_call>",
    "</tool_call>",
    head="<function=",
    tail="</function>",
    key="<parameter=",
    key_end=">",
    value="",
    value_end="</parameter>",
    padding="\n",
)
SEED = TaggedCalls(
    "<seed:tool_call>",
    "</seed:tool_call>",
    head="<function=",
    tail="</function>",
    key="<parameter=",
    key_end=">",
    value="",
    value_end="</parameter>",
)
GLM = TaggedCalls(
    "<tool_call>",
    "</tool_call>",
    head="",
    tail="",
    key="<arg_key>",
    key_end="</arg_key>",
    value="<arg_value>",
    value_end="</arg_value>",
)
"""GLM 4.5 and 4.6."""

GLM_FLAT = replace(GLM, gap="")
"""GLM 4.7 and later."""

MINIMAX = TaggedCalls(
    "<minimax:tool_call>",
    "</minimax:tool_call>",
    head='<invoke name="',
    tail="</invoke>",
    key='<parameter name="',
    key_end=">",
    value="",
    value_end="</parameter>",
    quote='"',
    several=True,
)


def _deepseek_tags(block: str) -> TaggedCalls:
    """Return the format of DeepSeek V3.2 and later; `block` is the name of the tag around calls."""
    prefix = "\uff5cDSML\uff5c"
    return TaggedCalls(
        f"<{prefix}{block}>",
        f"</{prefix}{block}>",
        head=f'<{prefix}invoke name="',
        tail=f"</{prefix}invoke>",
        key=f'<{prefix}parameter name="',
        key_end=">",
        value="",
        value_end=f"</{prefix}parameter>",
        quote='"',
        several=True,
        typed=True,
    )


DEEPSEEK_TAGS = _deepseek_tags("function_calls")
"""DeepSeek V3.2."""

DEEPSEEK_TOOL_TAGS = _deepseek_tags("tool_calls")
"""DeepSeek V4."""
