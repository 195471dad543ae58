"""Generates the parts of the documentation that follow from the code: tables and lists.

`python -m scripts.catalogue` writes the table of approaches into README.md, their parameters into
docs/approaches.md, the settings of local models into docs/local_models.md, and the import graph and
the list of modules into docs/architecture.md. With `--check` it only says whether they are current.
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

import optillm_hooks.approaches  # noqa: F401 (registers them)
from optillm_hooks.local_provider.model_spec import ModelSpec
from optillm_hooks.pipeline.plan import cost_of, stage_of
from optillm_hooks.registry import Approach, all_approaches
from scripts.imports import MODULES, PACKAGE, import_graph

BEGIN = "<!-- approaches: made by python -m scripts.catalogue -->"
END = "<!-- end of approaches -->"
BEGIN_SETTINGS = "<!-- settings: made by python -m scripts.catalogue -->"
END_SETTINGS = "<!-- end of settings -->"
BEGIN_PICTURE = "<!-- picture: made by python -m scripts.catalogue -->"
END_PICTURE = "<!-- end of picture -->"
BEGIN_MODULES = "<!-- modules: made by python -m scripts.catalogue -->"
END_MODULES = "<!-- end of modules -->"

EVERYWHERE = {"types", "errors"}
"""Modules that everything may import, which the picture leaves out."""

_WORTH = re.compile(r"^Worth it when: (.+?)\.$", re.MULTILINE | re.DOTALL)
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def summary(approach: Approach) -> str:
    """Return the summary of an approach: the first paragraph of its docstring, without its name."""
    first = approach.doc.split("\n\n", 1)[0].replace("\n", " ")
    return first.split(": ", 1)[-1]


def worth(approach: Approach) -> str:
    """Return when an approach is worth its cost, as its docstring says; "" if it does not."""
    said = _WORTH.search(approach.doc)
    return " ".join(said[1].split()) if said else ""


def sources(approach: Approach) -> str:
    """Return links to the papers that the docstring names, or a dash."""
    ids = dict.fromkeys(_ARXIV.findall(approach.doc))
    return ", ".join(f"[{i}](https://arxiv.org/abs/{i})" for i in ids) or "-"


def table() -> str:
    """Return the Markdown table of all approaches with their cost at default parameters."""
    rows = ["| approach | kind | what it does | worth it when | source | calls | critical path |"]
    rows.append("|---|---|---|---|---|---|---|")
    for approach in all_approaches():
        chain = (stage_of(approach.name, {}, None),)
        cost, remote = cost_of(chain), chain[0].cost.remote_calls
        calls = f"{cost.calls} (remote: {remote})" if remote else cost.calls
        rows.append(
            f"| `{approach.name}` | {approach.kind} | {summary(approach)} | {worth(approach)} "
            f"| {sources(approach)} | {calls} | {cost.depth} |"
        )
    return "\n".join(rows)


def settings() -> str:
    """Return the Markdown table of the settings of a local model."""
    return "\n".join(_fields("setting", ModelSpec))


def reference() -> str:
    """Return the Markdown reference: each approach's docstring and its parameters."""
    return "\n".join(["# Approaches and their parameters", "", *_sections()])


def _sections() -> Iterator[str]:
    yield "Made from the code by `python -m scripts.catalogue`; do not edit."
    for approach in all_approaches():
        yield f"\n## {approach.name}\n\n{approach.doc}\n"
        if not approach.params.model_fields:
            yield "It has no parameters."
            continue
        body = {name: key for key, name in approach.params.body_fields.items()}
        yield from _fields("parameter", approach.params, body)
        if ignored := approach.params.ignored.model_fields:
            names = ", ".join(f"`{name}`" for name in ignored)
            yield f"\nOptiLLM's body fields {names} are accepted where they change nothing."
    yield ""


def picture() -> str:
    """Return the import graph as Mermaid, without the arrows that follow from others."""
    graph = import_graph()
    drawn = [name for name in sorted(graph) if name not in EVERYWHERE]
    arrows = [
        f"    {PACKAGE.name if name == '__init__' else name} --> {other}"
        for name in drawn
        for other in sorted(_direct(graph, name) - EVERYWHERE)
    ]
    return "\n".join(["```mermaid", "flowchart TD", *arrows, "```"])


def _direct(graph: Mapping[str, set[str]], name: str) -> set[str]:
    """Return what `name` imports and nothing else that it imports leads to."""
    return graph[name] - {far for near in graph[name] for far in _reached(graph, near)}


def _reached(graph: Mapping[str, set[str]], name: str) -> set[str]:
    return graph[name].union(*(_reached(graph, near) for near in graph[name]))


def modules() -> str:
    """Return the Markdown list of all modules: the first line of each one's docstring."""
    folders = sorted({path.parent for path in PACKAGE.rglob("*.py")})
    return "\n".join(line for folder in folders for line in _modules(folder))


def _modules(folder: Path) -> Iterator[str]:
    yield f"\n### {folder.relative_to(PACKAGE.parent).as_posix()}\n"
    for path in sorted(folder.glob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        first, *_ = (ast.get_docstring(MODULES[name]) or "").splitlines() or [""]
        yield f"- [`{path.name}`](../{path.relative_to(PACKAGE.parent).as_posix()}): {first}"


def _fields(
    kind: str, model: type[BaseModel], body: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Yield the table of a model's fields; `body` maps some of them to request body fields."""
    yield f"| {kind} | type | default | bounds | meaning |\n|---|---|---|---|---|"
    for name, field in model.model_fields.items():
        also = f" Also the body field `{body[name]}`." if body and name in body else ""
        default = field.get_default(call_default_factory=True)
        shown = "required" if field.is_required() else f"`{default!r}`"
        yield (
            f"| `{name}` | `{_type(field)}` | {shown} | {_bounds(field)} "
            f"| {field.description}{also} |"
        )


def _type(field: FieldInfo) -> str:
    annotation = field.annotation
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return text.replace("typing.", "").replace("|", "or").replace("NoneType", "None")


def _bounds(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "max_length": "length ≤"}
    found = [
        f"{sign} {getattr(rule, name)}"
        for rule in field.metadata
        for name, sign in signs.items()
        if getattr(rule, name, None) is not None
    ]
    return ", ".join(found) or "-"


def with_table(readme: str) -> str:
    """Return `readme` with the table of approaches regenerated."""
    return _between(BEGIN, END, readme, table())


def with_settings(local_models: str) -> str:
    """Return docs/local_models.md with the table of a local model's settings regenerated."""
    return _between(BEGIN_SETTINGS, END_SETTINGS, local_models, settings())


def with_code(architecture: str) -> str:
    """Return docs/architecture.md with the picture and the list of modules regenerated."""
    drawn = _between(BEGIN_PICTURE, END_PICTURE, architecture, picture())
    return _between(BEGIN_MODULES, END_MODULES, drawn, modules())


def _between(begin: str, end: str, document: str, made: str) -> str:
    before, _, rest = document.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{made}\n{end}{after}"


def main(arguments: list[str]) -> int:
    """Write the generated parts, or with `--check` only compare; 1 if they are not current."""
    readme, docs = Path("README.md"), Path("docs/approaches.md")
    local_models, architecture = Path("docs/local_models.md"), Path("docs/architecture.md")
    made = {
        readme: with_table(readme.read_text()),
        docs: reference(),
        local_models: with_settings(local_models.read_text()),
        architecture: with_code(architecture.read_text()),
    }
    stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    if arguments == ["--check"]:
        for path in stale:
            sys.stderr.write(f"{path} is not current: run python -m scripts.catalogue\n")
        return int(bool(stale))
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(made[path])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
