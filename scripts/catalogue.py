"""Generates the parts of the documentation that follow from the code: tables and lists.

`python -m scripts.catalogue` writes the table of approaches into README.md, their parameters into
docs/approaches.md, the settings of local models into docs/local_models.md, and the import graph and
the list of modules into docs/architecture.md. With `--check` it only says whether they are current.
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from pydantic import BaseModel

import optillm_hooks.approaches  # noqa: F401 (registers them)
from optillm_hooks.approach_docs import bounds, good_for, summary, type_name, worth
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

GROUPS = (
    "answers that can be compared",
    "a judge that knows better",
    "answers that can be checked",
    "open questions",
    "a single call",
    "local models and hosts with logprobs",
    "long texts",
    "pages and tools",
    "agents",
    "the form of answers, and privacy",
)
"""What approaches are good for, in the order of README."""

_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def sources(approach: Approach) -> str:
    """Return links to the papers that the docstring names, or a dash."""
    ids = dict.fromkeys(_ARXIV.findall(approach.doc))
    return ", ".join(f"[{i}](https://arxiv.org/abs/{i})" for i in ids) or "-"


def table() -> str:
    """Return the Markdown tables of all approaches, by what they are good for."""
    return "\n\n".join(_group(group) for group in GROUPS)


def _group(group: str) -> str:
    rows = ["| approach | what it does | worth it when | price | path | kind | source |"]
    rows.append("|---|---|---|---|---|---|---|")
    rows += [_row(approach) for approach in all_approaches() if good_for(approach) == group]
    return "\n".join([f"**{group[0].upper()}{group[1:]}**", "", *rows])


def _row(approach: Approach) -> str:
    cost = cost_of((stage_of(approach.name, {}, None),))
    return (
        f"| `{approach.name}` | {summary(approach)} | {worth(approach)} | {price(approach)} "
        f"| {cost.depth} | {approach.kind} | {sources(approach)} |"
    )


def price(approach: Approach) -> str:
    """Return the calls of an approach at its defaults as a multiple of a plain call's.

    First what it needed on the simulated model, if it was measured there, then the most.
    """
    chain = (stage_of(approach.name, {}, None),)
    most, remote = cost_of(chain).calls, chain[0].cost.remote_calls
    needed = measured_calls().get(approach.name)
    shown = f"{needed}, at most {most}" if needed and most > 1 else f"{most}"
    return f"{shown} (remote: {remote})" if remote else shown


@cache
def measured_calls() -> dict[str, str]:
    """Return the calls that approaches needed on the simulated model that is right in 70 %."""
    page = (PACKAGE.parent / "docs" / "performance.md").read_text()
    section = page.partition("### A single call is right in 70 %")[2].partition("\n\n†")[0]
    return dict(re.findall(r"^\| `(\w+)` \| ([\d.-]+) \|", section, re.MULTILINE))


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
            f"| `{name}` | `{type_name(field)}` | {shown} | {bounds(field) or '-'} "
            f"| {field.description}{also} |"
        )


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
