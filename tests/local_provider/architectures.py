"""The table of architectures in the documentation, made from the families that are tested.

`python -m tests.local_provider.architectures` writes it into docs/local_models.md.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tests.local_provider.families import MULTIMODAL, NO_DECODERS, REFUSED, ROW_BY_ROW
from tests.local_provider.test_architectures import BATCHED
from tests.local_provider.test_text_towers import FAMILIES

PAGE: Final = Path(__file__).parents[2] / "docs" / "local_models.md"
BEGIN: Final = "<!-- architectures: made by python -m tests.local_provider.architectures -->"
END: Final = "<!-- end of architectures -->"


def table() -> str:
    """Return the Markdown table of the architectures by how they are served."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield "| served | `model_type` in the model's `config.json` |"
    yield "|---|---|"
    yield f"| in the batch | {_named(BATCHED)} |"
    texts = {family: text for family, (text, _) in FAMILIES.items()}
    yield f"| in the batch, for prompts of text only | {_named(texts)} |"
    yield f"| row by row | {_named(ROW_BY_ROW)} |"
    texts = {family: ROW_BY_ROW[text] for family, text in MULTIMODAL.items()}
    yield f"| row by row, for prompts of text only | {_named(texts)} |"
    refused = {**REFUSED, **NO_DECODERS}
    for why in sorted({why for _, why in refused.values()}):
        families = sorted(family for family, (_, reason) in refused.items() if reason == why)
        yield f"| refused: {why} | {', '.join(f'`{family}`' for family in families)} |"


def _named(families: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the names of families, with the one field that decides how they are served."""
    with_field = {f: " with `is_decoder`" for f, given in families.items() if "is_decoder" in given}
    return ", ".join(f"`{family}`{with_field.get(family, '')}" for family in sorted(families))


def with_table(page: str) -> str:
    """Return docs/local_models.md with the table made again."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
