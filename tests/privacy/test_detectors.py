"""What the built-in detectors find, in several languages, and what they leave alone."""

import json
from typing import Any

import pytest

from optillm_hooks.privacy.detectors import find, scan_now
from optillm_hooks.privacy.found import BUILT_IN, CARD, EMAIL, IBAN, PHONE, without_overlaps
from optillm_hooks.privacy.occurrences import Value, occurrences_now
from optillm_hooks.settings import PrivacySettings
from tests.growth import growth
from tests.proxy import ROOT
from tests.test_linear_readers import TEXTS

CASES = json.loads((ROOT / "tests/golden/privacy.json").read_text())
REGIONS = PrivacySettings().regions
SOME = [*TEXTS][::3]
"""Every pattern by itself is tested on texts that are made from it."""


def found_in(text: str) -> dict[str, str]:
    found = without_overlaps(find(text, BUILT_IN, REGIONS))
    return {text[each.start : each.end]: each.entity for each in found}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"][:40])
def test_golden_cases(case: dict[str, Any]) -> None:
    assert found_in(case["text"]) == case["found"]


def test_only_the_chosen_kinds_are_found() -> None:
    text = "Mr. Bob Stone, bob@example.org"
    assert [each.entity for each in find(text, [EMAIL, "NO_SUCH_KIND"], REGIONS)] == [EMAIL]


@pytest.mark.parametrize(
    ("entity", "spellings"),
    [
        (PHONE, ["+1 415-555-2671", "(415) 555-2671", "415.555.2671", "+14155552671"]),
        (PHONE, ["+1 415-555-2671", "+1\u202f415\u202f555\u202f2671", "%2B14155552671"]),
        (PHONE, ["+1 415-555-2671", "+١ ٤١٥ ٥٥٥ ٢٦٧١", "+1 415\u2011555\u20112671"]),
        (CARD, ["4111 1111 1111 1111", "4111111111111111", "4111-1111-1111-1111"]),
        (CARD, ["4111.1111.1111.1111", "4111_1111_1111_1111", "4111/1111/1111/1111"]),
        (CARD, ["4111+1111+1111+1111", "4111%201111%201111%201111", "4111  1111  1111  1111"]),
        (CARD, ["4111&nbsp;1111&nbsp;1111&nbsp;1111", "4111\u200b1111\u200b1111\u200b1111"]),
        (CARD, ["４１１１ １１１１ １１１１ １１１１", "4111\u202f1111\u202f1111\u202f1111"]),
        (CARD, ["𝟒𝟏𝟏𝟏 𝟏𝟏𝟏𝟏 𝟏𝟏𝟏𝟏 𝟏𝟏𝟏𝟏", "4111** **1111** **1111** **1111"]),
        (IBAN, ["DE89370400440532013000", "de89 3704 0044 0532 0130 00"]),
        (
            IBAN,
            ["DE89\u202f3704\u202f0044\u202f0532\u202f0130\u202f00", "DE89.3704.0044.0532.0130.00"],
        ),
        (EMAIL, ["Bob@Example.org", "bob@example.org", "bob%40example.org"]),
        (EMAIL, ["bob＠example.org", "ｂｏｂ@example.org", "bob%40example%2Eorg"]),
        (EMAIL, ["bob&#64;example.org", "bob&commat;example.org", "bob&#x40;example.org"]),
        (EMAIL, ["bob\\u0040example.org", "bo\u00adb@exam\u00adple.org", "bob@example.org\u200b"]),
    ],
)
def test_spellings_of_a_value_have_one_key(entity: str, spellings: list[str]) -> None:
    """And each is found as a whole, with nothing of it left and nothing around it taken."""
    found = {f"é %20 {text}, é": find(f"é %20 {text}, é", [entity], REGIONS) for text in spellings}
    assert [[text[each.start : each.end] for each in values] for text, values in found.items()] == [
        [text.strip("\u200b")] for text in spellings
    ]
    assert len({each.key for values in found.values() for each in values}) == 1


@pytest.mark.parametrize(
    "text", ["4111.1111.1111.1112", "4111.1111.1111.1111.2", "aabb.ccdd.eeff.0011"]
)
def test_a_part_of_a_dotted_number_is_no_address(text: str) -> None:
    assert not find(text, BUILT_IN, REGIONS)


@pytest.mark.parametrize("number", ["4111111111111112", "5000000000000000", "1234567812345670"])
def test_a_card_has_the_checksum_and_the_issuer_of_one(number: str) -> None:
    assert not find(f"card {number}", [CARD], REGIONS)


def test_a_national_number_is_one_of_the_regions_that_are_set() -> None:
    assert find("Tel. 030 901820", [PHONE], ["DE"])
    assert not find("Tel. 030 901820", [PHONE], ["US"])


@pytest.mark.parametrize("name", SOME)
def test_texts_of_every_kind_are_searched_in_linear_time(name: str) -> None:
    def run(text: str) -> None:
        scan_now([text], BUILT_IN, ["US"])

    assert growth(run, TEXTS[name]).is_linear


# -------------------------------------------------------------------------- known values

VALUES = [
    Value("Alice Johnson", "PERSON", "a"),
    Value("Alice", "PERSON", "a"),
    Value("+1 415", "PHONE", "p"),
    Value("李明", "PERSON", "l"),
    Value("bob@example.org", "EMAIL", "b"),
    Value("widget", "CUSTOM", "w"),
]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Alice's and ALICE, alice johnson", ["Alice", "ALICE", "alice johnson"]),
        ("Alices, malice, alice, Alice_2", []),
        ("call +1 415, not 1 4155", ["+1 415"]),
        ("请问李明在吗", ["李明"]),
        ("BOB@EXAMPLE.ORG", ["BOB@EXAMPLE.ORG"]),
        ("a Widget, widgets", ["Widget"]),
        ("Alice李明", ["Alice", "李明"]),
    ],
)
def test_known_values_are_found_as_whole_words(text: str, shown: list[str]) -> None:
    [found] = occurrences_now([text], VALUES)
    assert [text[each.start : each.end] for each in found] == shown


@pytest.mark.parametrize(
    "written",
    [
        "Zoë Stone",
        "Zoe\u0308 Stone",
        "Zoë\u202fStone",
        "ＺＯË ＳＴＯＮＥ",
        "Zo\u200bë Stone",
        "Zo%C3%AB%20Stone",
    ],
)
def test_known_values_are_found_however_they_are_written(written: str) -> None:
    text = f"%41 é {written}."
    for value in ("Zoë Stone", "Zoe\u0308 Stone"):
        [[found]] = occurrences_now([text], [Value(value, "PERSON", "zoë stone")])
        assert text[found.start : found.end] == written


@pytest.mark.parametrize("name", SOME)
def test_known_values_are_found_in_linear_time(name: str) -> None:
    assert growth(lambda text: occurrences_now([text], VALUES), TEXTS[name]).is_linear


def test_values_that_overlap_become_one_so_that_no_part_of_them_stays() -> None:
    [found] = occurrences_now(
        ["Anna Maria Berg"],
        [Value("Anna Maria", "PERSON", "1"), Value("Maria Berg", "PERSON", "2")],
    )
    assert [(each.start, each.end) for each in found] == [(0, 15)]
