"""Quotations: what counts as copied from a text, in several languages."""

import pytest

from optillm_hooks.answers.quotes import quoted
from optillm_hooks.answers.sections import split_by_headings

PAGES = [
    "The tide is highest\nat new moon \u2014 and at \u201cfull\u201d moon, twice a month.",
    "\u6f6e\u6c50\u306f\u6708\u306e\u5f15\u529b\u306b\u3088\u3063\u3066\u8d77\u3053\u308b\u3002\u4e00\u65e5\u306b\u4e8c\u56de\u3042\u308b\u3002",
    "Die H\u00f6he betr\u00e4gt 15,2 Meter in der Bucht.",
]


@pytest.mark.parametrize(
    ("page", "quote", "found"),
    [
        (0, "highest at new moon - and at 'full' moon", True),
        (0, "The tide is highest ... twice a month", True),
        (0, "The tide is highest [\u2026] at low water", False),
        (0, "the tide is lowest at new moon", False),
        (0, "moon", False),  # too short to prove anything
        (0, "...", False),
        (0, "", False),
        (1, "\u6708\u306e\u5f15\u529b\u306b\u3088\u3063\u3066\u8d77\u3053\u308b", True),
        (1, "\u592a\u967d\u306e\u5f15\u529b\u306b\u3088\u3063\u3066\u8d77\u3053\u308b", False),
        (2, "die h\u00f6he betra\u0308gt 15,2 Meter", True),
        (2, "The tide is highest at new moon", False),
        (7, "The tide is highest at new moon", False),
        (-1, "Die H\u00f6he betr\u00e4gt 15,2 Meter", False),
    ],
)
def test_a_quotation_is_in_its_text_or_not(page: int, quote: str, found: bool) -> None:
    assert quoted(PAGES, [(page, quote)]) == [found]


def test_a_draft_is_read_by_its_headings() -> None:
    text = "Intro\n## 1. Causes\nThe moon.\n### Detail\nMore.\n## **Effects:**\nFloods.\n# Other\nx"
    assert split_by_headings(text, ["Causes", "Effects", "Outlook"]) == [
        "Intro\n\nThe moon.\n### Detail\nMore.",
        "Floods.\n# Other\nx",
        "",
    ]
    assert split_by_headings("No headings.", ["A", "B"]) == ["No headings.", ""]
    assert split_by_headings("x", []) == []
