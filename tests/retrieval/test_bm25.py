"""BM25 finds the text that a question is about, in every language."""

import math

import pytest

from optillm_hooks.retrieval.bm25 import ranking, scores

pytestmark = pytest.mark.anyio

TEXTS = {
    "English": ("The meeting takes place in Lisbon.", "The invoice is due in March."),
    "German": ("Die Besprechung ist in Lissabon.", "Die Rechnungen sind im März fällig."),
    "Chinese": ("会议在里斯本举行。", "发票三月到期。"),
    "Japanese": ("会議はリスボンです。", "請求書は三月が期限です。"),
    "Thai": ("การประชุมที่ลิสบอน", "ใบแจ้งหนี้ครบกำหนดมีนาคม"),
    "Hindi": ("बैठक लिस्बन में है।", "चालान मार्च में देय है।"),
    "Arabic": ("الاجتماع في لشبونة", "الفاتورة مستحقة في مارس"),
    "Korean": ("회의는 리스본에서 열린다", "청구서는 3월에 만기이다"),
}
QUERIES = {
    "English": "When are the invoices due?",
    "German": "Wann ist die Rechnung fällig?",
    "Chinese": "发票什么时候到期？",
    "Japanese": "請求書の期限は？",
    "Thai": "ใบแจ้งหนี้ครบกำหนดเมื่อไหร่",
    "Hindi": "चालान कब देय है?",
    "Arabic": "متى الفاتورة مستحقة؟",
    "Korean": "청구서 만기일은?",
}


@pytest.mark.parametrize("language", TEXTS)
async def test_the_text_that_is_asked_about_comes_first(language: str) -> None:
    assert await ranking(QUERIES[language], TEXTS[language]) == [1, 0]


async def test_the_score_is_that_of_the_formula() -> None:
    """One query word; lengths 2 and 4; idf = ln(1 + 1.5 / 1.5); tf = 2 in the second text."""
    idf = math.log(2)
    expected = idf * 2 * 2.5 / (2 + 1.5 * (0.25 + 0.75 * 4 / 3))
    assert await scores("cat", ["dog pig", "cat cat dog pig"]) == pytest.approx([0, expected])


async def test_a_rare_word_weighs_more() -> None:
    assert await ranking("red fox", ["red hat", "red shoe", "a fox"]) == [2, 0, 1]


async def test_texts_without_words_and_questions_without_words_score_nothing() -> None:
    assert await scores("What?", ["...", "", "—"]) == [0, 0, 0]
    assert await scores("?!", ["a cat"]) == [0]
    assert await scores("cat", []) == []


async def test_one_character_is_found_within_a_word() -> None:
    assert await ranking("猫？", ["犬が寝る", "黒猫が寝る"]) == [1, 0]


async def test_width_and_case_do_not_matter() -> None:
    assert await ranking("STRASSE", ["ein Haus", "ｓtraße"]) == [1, 0]


async def test_a_text_is_read_to_its_end() -> None:
    long = f"{'word ' * 20_000}needle"
    assert await ranking("needle", ["word", long]) == [1, 0]
