"""The addresses in texts as people write them."""

import time

import pytest

from optillm_hooks.web.download import MAX_URL
from optillm_hooks.web.links import find_urls, page_key

A, B = "https://example.com/a", "http://example.org/b?x=1&y=2"
PAREN = "https://en.wikipedia.org/wiki/Moon_(disambiguation)"


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        (f"Read {A}.", [A]),
        (f"Read {A}, then {B}!", [A, B]),
        (f"({A})", [A]),
        (f"(see {A}).", [A]),
        (f"<{A}>", [A]),
        (f'<a href="{A}">it</a>', [A]),
        (f"'{A}'", [A]),
        (f"`{A}`", [A]),
        (f"**{A}**", [A]),
        (f"_{A}_", [A]),
        ("https://example.com/a_", ["https://example.com/a_"]),
        (f"[the page]({A})", [A]),
        (f'[the page]({A} "its title")', [A]),
        (f"[the page]({PAREN})", [PAREN]),
        (f"[{A}]({A})", [A]),
        (f"[1]: {A}\n[2]: {B}", [A, B]),
        (PAREN, [PAREN]),
        (f"{PAREN}.", [PAREN]),
        (f"({PAREN})", [PAREN]),
        (f"{A}#part and {A}#other", [A]),
        (f"{A} {A}/ {A}", [A]),
        ("https://example.com/abc https://example.com/ab", None),
        ("HTTPS://Example.com/a", ["https://Example.com/a"]),
        ("http://[2001:db8::1]:8080/x", ["http://[2001:db8::1]:8080/x"]),
        ("https://bücher.example/ä", ["https://bücher.example/ä"]),
        ("https://例え.テスト/見る", ["https://例え.テスト/見る"]),
        ("请看https://example.com/a。谢谢", [A]),
        ("请看（https://example.com/a），谢谢", [A]),
        ("「https://example.com/a」を見て", [A]),
        ("https://example.com/aを読んで", [A]),
        ("https://example.com을 읽어", ["https://example.com"]),
        ("https://ja.wikipedia.org/wiki/日本、東京", ["https://ja.wikipedia.org/wiki/日本"]),
        ("اقرأ https://example.com/a، ثم", [A]),
        ("Читай https://пример.рф/путь!", ["https://пример.рф/путь"]),
        ("«https://example.com/a»", [A]),
        ("https://example.com/a…", [A]),
        ("https://example.com/a?q=1;", ["https://example.com/a?q=1"]),
        ("https://", []),
        ("https:// example.com", []),
        ("ftp://example.com file:///etc/passwd javascript:alert(1)", []),
        ("no address", []),
        ("", []),
    ],
)
def test_addresses(text: str, urls: list[str] | None) -> None:
    assert find_urls(text, 10) == (text.split() if urls is None else urls)


def test_as_many_as_wanted() -> None:
    text = " ".join(f"https://example.com/{number}" for number in range(100))
    assert find_urls(text, 3) == [f"https://example.com/{number}" for number in range(3)]


def test_one_that_is_too_long_is_not_cut_to_another_page() -> None:
    [found] = find_urls("https://example.com/" + "x" * 5000, 10)
    assert len(found) > MAX_URL


@pytest.mark.parametrize(
    "text",
    ["https://" * 250_000, "https://a(" * 200_000, "([" * 1_000_000, "https://x" + "_" * 2_000_000],
    ids=["begins", "brackets", "none", "one"],
)
def test_a_large_text_takes_little_time(text: str) -> None:
    started = time.process_time()
    find_urls(text, 20)
    assert time.process_time() - started < 2


def test_the_same_page() -> None:
    assert page_key("http://www.Example.com/A/#x") == page_key("https://example.com/A")
    assert page_key("https://example.com/a") != page_key("https://example.com/A")
    assert page_key("https://example.com/?a=1") != page_key("https://example.com/?a=2")
