"""Import graph of the package, read from its source; tests/test_architecture.py sets its rules."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import optillm_hooks
from optillm_hooks.registry import ENTRY_POINT_GROUP

PACKAGE = Path(optillm_hooks.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
}


def top(module: str) -> str:
    """Return the part of the package that a module belongs to: `gateway` for `gateway.tags`."""
    return module.split(".")[0]


TOPS = frozenset(map(top, MODULES))


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the full name of everything that is imported, within functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"line {node.lineno}: imports must be absolute")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_in_strings(tree: ast.AST) -> Iterator[str]:
    """Yield the names of our modules in texts that code could import by: worker scripts, say."""
    no_import = _docstrings(tree)
    texts = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    for text in texts:
        if id(text) not in no_import and text.value != ENTRY_POINT_GROUP:
            yield from re.findall(r"\boptillm_hooks\.[a-z_]+(?:\.[a-z_]+)*", str(text.value))


def _docstrings(tree: ast.AST) -> set[int]:
    """Return the ids of the nodes that document something, which may name what they like."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def used_names(module: str) -> list[list[str]]:
    """Return the parts of each name of ours that a module imports, as a statement or as text."""
    tree = MODULES[module]
    names = [*imports(tree), *modules_in_strings(tree)]
    return [parts for name in names if (parts := name.split("."))[0] == "optillm_hooks"]


def own_imports(module: str) -> set[str]:
    """Return the parts of the package that a module imports, its own among them."""
    return {p[1] for p in used_names(module) if len(p) > 1 and p[1] in TOPS}


def imported_modules(module: str) -> set[str]:
    """Return the modules of ours that a module imports, by their names in `MODULES`."""
    found = set()
    for parts in used_names(module):
        for end in range(len(parts), 1, -1):
            name = ".".join(parts[1:end])
            if {name, f"{name}.__init__"} & MODULES.keys():
                found.add(name if name in MODULES else f"{name}.__init__")
                break
    return found - {module}


def import_graph() -> dict[str, set[str]]:
    """Return which other parts of the package each part imports."""
    graph: dict[str, set[str]] = {name: set() for name in TOPS}
    for module in MODULES:
        graph[top(module)] |= own_imports(module) - {top(module)}
    return graph
