"""The table of approaches and the reference of their parameters, made from the code.

`python -m optillm_hooks.catalogue` writes them into README.md and docs/approaches.md;
with `--check` it only says whether they are current.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic.fields import FieldInfo

import optillm_hooks.approaches  # noqa: F401 (registers them)
from optillm_hooks.registry import Approach, all_approaches

BEGIN = "<!-- approaches: made by python -m optillm_hooks.catalogue -->"
END = "<!-- end of approaches -->"

_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def summary(approach: Approach) -> str:
    """Return what the approach does: the first paragraph of its docstring, without its name."""
    first = approach.doc.split("\n\n", 1)[0].replace("\n", " ")
    return first.split(": ", 1)[-1]


def sources(approach: Approach) -> str:
    """Return links to the papers that the docstring names, or a dash."""
    ids = dict.fromkeys(_ARXIV.findall(approach.doc))
    return ", ".join(f"[{i}](https://arxiv.org/abs/{i})" for i in ids) or "-"


def table() -> str:
    """Return the Markdown table of all approaches with their cost at default parameters."""
    rows = ["| approach | kind | what it does | source | calls | critical path |"]
    rows.append("|---|---|---|---|---|---|")
    for approach in all_approaches():
        cost = approach.cost(approach.params())
        last = approach.kind in ("rewriter", "wrapper")  # alone, a plain call ends it
        rows.append(
            f"| `{approach.name}` | {approach.kind} | {summary(approach)} | {sources(approach)} "
            f"| {cost.calls + last} | {cost.depth + last} |"
        )
    return "\n".join(rows)


def reference() -> str:
    """Return the Markdown reference: each approach's docstring and its parameters."""
    return "\n".join(["# Approaches and their parameters", "", *_sections()])


def _sections() -> Iterator[str]:
    yield "Made from the code by `python -m optillm_hooks.catalogue`; do not edit."
    for approach in all_approaches():
        yield f"\n## {approach.name}\n\n{approach.doc}\n"
        fields = approach.params.model_fields
        if not fields:
            yield "It has no parameters."
            continue
        yield "| parameter | type | default | bounds | meaning |\n|---|---|---|---|---|"
        body = {name: key for key, name in approach.params.body_fields.items()}
        for name, field in fields.items():
            also = f" Also the body field `{body[name]}`." if name in body else ""
            default = field.get_default(call_default_factory=True)
            yield (
                f"| `{name}` | `{_type(field)}` | `{default!r}` | {_bounds(field)} "
                f"| {field.description}{also} |"
            )
    yield ""


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
    """Return `readme` with the table between its marks made anew."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Write the generated parts, or with `--check` only compare; 1 if they are not current."""
    readme, docs = Path("README.md"), Path("docs/approaches.md")
    made = {readme: with_table(readme.read_text()), docs: reference()}
    stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    if arguments == ["--check"]:
        for path in stale:
            sys.stderr.write(f"{path} is not current: run python -m optillm_hooks.catalogue\n")
        return int(bool(stale))
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(made[path])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
