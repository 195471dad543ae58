"""Every regular expression of the package, found without a list of them."""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import optillm_hooks
from optillm_hooks.answers.patterns import Pattern

_METHODS: Final = frozenset(
    ("match", "fullmatch", "search", "finditer", "findall", "sub", "subn", "split")
)
_FLAGS_AT: Final = {"sub": 4, "subn": 4, "split": 3}
_ANCHORED: Final = frozenset(("match", "fullmatch"))

_WITHOUT_PATTERNS: Final = frozenset(("optillm_hooks.local_provider.gpu_kernels",))
"""Modules that import what only machines with a GPU have."""

_OF_THE_OPERATOR: Final = frozenset(("optillm_hooks.local_provider.adapters",))
"""Modules that use patterns in files of the operator's."""


@dataclass(frozen=True)
class Found:
    """A pattern of the package."""

    where: str
    pattern: re.Pattern[str]
    methods: frozenset[str]
    """How it is used; empty if that cannot be told."""

    def run(self, text: str) -> None:
        """Use the pattern on `text` as the package does: unless anchored, from every position."""
        if not self.methods or self.methods - _ANCHORED:
            for _ in self.pattern.finditer(text):
                pass
        if "match" in self.methods:
            self.pattern.match(text)
        if "fullmatch" in self.methods:
            self.pattern.fullmatch(text)


def package_patterns() -> list[Found]:
    """Return the patterns of all modules: those that modules hold, and those written in calls."""
    found: dict[tuple[str, int], Found] = {}
    modules = {module.__name__: module for module in _modules()}
    trees = {
        name: ast.parse(Path(str(module.__file__)).read_text("utf-8"))
        for name, module in modules.items()
    }
    uses = _uses(trees)
    for name, module in modules.items():
        for one in (*_held(module, uses), *_in_calls(module, trees[name])):
            key = (one.pattern.pattern, one.pattern.flags)
            known = found.get(key)
            if known is None:
                found[key] = one
            elif known.methods and one.methods:
                found[key] = replace(known, methods=known.methods | one.methods)
            else:
                found[key] = replace(known, methods=frozenset())
    return list(found.values())


def _modules() -> Iterator[ModuleType]:
    for info in pkgutil.walk_packages(optillm_hooks.__path__, "optillm_hooks."):
        if not info.name.endswith("__main__") and info.name not in _WITHOUT_PATTERNS:
            yield importlib.import_module(info.name)


def _held(module: ModuleType, uses: Mapping[str, frozenset[str]]) -> Iterator[Found]:
    """Yield the patterns in the constants of a module; imported ones belong to their own module."""
    for name, value in vars(module).items():
        where = f"{module.__name__}.{name}"
        if where in uses:
            for pattern in _patterns(value, set()):
                yield Found(where, pattern, uses[where])


def _patterns(value: Any, seen: set[int]) -> Iterator[re.Pattern[str]]:
    """Yield the patterns in a value: in containers, in attributes, and in classes."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, re.Pattern):
        if isinstance(value.pattern, str):
            yield value
    elif isinstance(value, Pattern):
        yield value.compiled
    elif isinstance(value, Mapping):
        for part in (*value.keys(), *value.values()):
            yield from _patterns(part, seen)
    elif isinstance(value, tuple | list | set | frozenset):
        for part in value:
            yield from _patterns(part, seen)
    elif _is_ours(value if isinstance(value, type) else type(value)):
        attributes = getattr(value, "__dict__", {}) | {
            slot: getattr(value, slot, None) for slot in getattr(value, "__slots__", ())
        }
        for part in list(attributes.values()):
            yield from _patterns(part, seen)


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == optillm_hooks.__name__


def _uses(trees: Mapping[str, ast.Module]) -> dict[str, frozenset[str]]:
    """Return the methods with which each name that a module defines is used, in all modules.

    They are empty if the name is used otherwise than in `NAME.method(...)`, in loops over it, and
    in a constant that is used so.
    """
    methods: dict[str, set[str]] = {}
    held: dict[str, set[str]] = {}
    unclear: set[str] = set()
    for module, tree in trees.items():
        imported = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        clear: set[ast.AST] = set()
        for constant in tree.body:
            if isinstance(constant, ast.Assign) and isinstance(constant.value, ast.Tuple):
                for node in ast.walk(constant.value):
                    if isinstance(node, ast.Name):
                        clear.add(node)
                        where = imported.get(node.id, f"{module}.{node.id}")
                        held.setdefault(where, set()).update(
                            f"{module}.{target.id}"
                            for target in constant.targets
                            if isinstance(target, ast.Name)
                        )
        for node in ast.walk(tree):  # a parent comes before its children
            if isinstance(node, ast.Name | ast.ClassDef | ast.FunctionDef):
                name = node.id if isinstance(node, ast.Name) else node.name
                methods.setdefault(imported.get(name, f"{module}.{name}"), set())
            for used, how in _used_in(node):
                clear.add(used)
                methods.setdefault(imported.get(used.id, f"{module}.{used.id}"), set()).update(how)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node not in clear:
                unclear.add(imported.get(node.id, f"{module}.{node.id}"))
    for where, holders in held.items():
        methods[where].update(*(methods.get(holder, set()) for holder in holders))
        if holders & unclear:
            unclear.add(where)
    return {
        where: frozenset() if where in unclear else frozenset(used)
        for where, used in methods.items()
    }


def _used_in(node: ast.AST) -> Iterator[tuple[ast.Name, set[str]]]:
    """Yield the names that a node uses, and the methods called on them or on their items."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        yield node.value, {node.attr} & _METHODS
    elif isinstance(node, ast.For):
        yield from _looped(node, node.target, node.iter)
    elif isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
        for loop in node.generators:
            yield from _looped(node, loop.target, loop.iter)


def _looped(
    loop: ast.AST, target: ast.expr, items: ast.expr
) -> Iterator[tuple[ast.Name, set[str]]]:
    if isinstance(items, ast.Call) and isinstance(items.func, ast.Attribute):  # TABLE.items()
        items = items.func.value
    targets = {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}
    how = {
        node.attr
        for node in ast.walk(loop)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in targets
    } & _METHODS
    if isinstance(items, ast.Name) and how:
        yield items, how


def _in_calls(module: ModuleType, tree: ast.Module) -> Iterator[Found]:
    """Yield the patterns in calls such as `re.search(r"...", text)` in functions.

    Raises:
        AssertionError: a pattern is not known before the call.
    """
    for node in ast.walk(tree):
        if not (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "re"
            and node.func.attr in _METHODS
        ):
            continue
        if module.__name__ in _OF_THE_OPERATOR and isinstance(node.args[0], ast.Name):
            continue
        where = f"{module.__name__}:{node.lineno}"
        pattern = _evaluated(node.args[0], module, where)
        at = _FLAGS_AT.get(node.func.attr, 2)
        flags = _evaluated(node.args[at], module, where) if len(node.args) > at else 0
        for keyword in node.keywords:
            if keyword.arg == "flags":
                flags = _evaluated(keyword.value, module, where)
        yield Found(where, re.compile(pattern, flags), frozenset((node.func.attr,)))


def _evaluated(node: ast.expr, module: ModuleType, where: str) -> Any:
    """Return the value of an argument, with a word for each escaped text in it."""
    try:
        return eval(ast.unparse(_EscapedAsWord().visit(node)), vars(module))  # noqa: S307 - our own source
    except NameError as exc:
        raise AssertionError(f"{where}: {exc}; write the pattern as a constant") from None


class _EscapedAsWord(ast.NodeTransformer):
    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> ast.expr:
        node.elt = self.visit(node.elt)
        is_word = isinstance(node.elt, ast.Constant)
        return ast.Tuple([node.elt] * 2, ast.Load()) if is_word else node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if ast.unparse(node.func) == "re.escape":
            return ast.Constant("word")
        self.generic_visit(node)
        return node
