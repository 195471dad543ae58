"""The text of pages, as the worker reads it."""

import io
import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import pypdf
import pytest
from pypdf.generic import DictionaryObject, NameObject, StreamObject

from optillm_hooks.errors import OptiLLMError
from optillm_hooks.sandbox.client import WorkerLimits, ask_worker
from optillm_hooks.services import ServiceFailed
from optillm_hooks.web.download import Download
from optillm_hooks.web.pages import PageCache, PageReader
from optillm_hooks.web.text import MAX_TEXT, answer

pytestmark = pytest.mark.anyio

LIMITS = WorkerLimits(seconds=10, memory_mb=1024, reply_bytes=1 << 22)
LONG = "It is long enough to be the main text of a page, which a menu is not. " * 4


def read(body: bytes | str, kind: str = "html", charset: str = "") -> dict[str, Any]:
    content = body.encode() if isinstance(body, str) else body
    request = {"body": b64encode(content).decode(), "kind": kind, "charset": charset}
    found = answer(request)
    assert isinstance(found, dict)
    return found


def page(main: str, head: str = "") -> str:
    return (
        f"<html><head><title>T &amp; t</title>{head}</head><body><nav><a href='/'>Menu</a></nav>"
        f"<main><h1>Heading</h1><p>{LONG}</p>{main}</main><script>evil()</script></body></html>"
    )


def test_the_main_text_without_menus_and_scripts() -> None:
    found = read(page("<ul><li>one</li><li>two</li></ul>"))
    assert found["title"] == "T & t"
    assert "# Heading" in found["text"]
    assert "- one\n- two" in found["text"]
    assert "evil" not in found["text"]
    assert "Menu" not in found["text"]


def test_brackets_stay() -> None:
    """Citations, indexes and links in the text of a page."""
    text = read(page("<p>As shown [12], a[0] is `x_1` &lt; 5 * y. Use <code>a[0]</code>.</p>"))[
        "text"
    ]
    assert "As shown [12], a[0] is `x_1` < 5 * y. Use `a[0]`." in text


def test_xhtml() -> None:
    declared = '<?xml version="1.0" encoding="iso-8859-1"?><!DOCTYPE html>' + page("<p>Grüße.</p>")
    found = read(declared.encode("iso-8859-1"))
    assert found["title"] == "T & t"
    assert "Grüße." in found["text"]


def test_tables_stay() -> None:
    table = "<table><tr><th>Planet</th><th>Moons</th></tr><tr><td>Mars</td><td>2</td></tr></table>"
    assert "| Mars | 2 |" in read(page(table))["text"]


@pytest.mark.parametrize("body", ["<p>Short.</p>", "Short.", "<div>Short.", "<b>Short.</b>"])
def test_a_page_without_a_main_text_is_read_as_a_whole(body: str) -> None:
    assert "Short." in read(body)["text"]


@pytest.mark.parametrize(
    ("text", "charset", "looks_like"),
    [
        ("Grüße aus München. ", "iso-8859-1", False),
        ("“Smart quotes” and – dashes. ", "windows-1252", False),
        ("Привет, мир. Это текст. ", "windows-1251", False),
        ("こんにちは、世界。これは文章です。", "shift_jis", True),
        ("こんにちは、世界。これは文章です。", "euc-jp", True),
        ("你好，世界。这是一篇文章。", "gb2312", True),
        ("你好，世界。這是一篇文章。", "big5", True),
        ("안녕하세요, 세계. ", "euc-kr", True),
        ("שלום עולם. ", "windows-1255", False),
        ("مرحبا بالعالم. ", "windows-1256", False),
        ("สวัสดีชาวโลก ", "tis-620", False),
        ("Γειά σου Κόσμε. ", "utf-8", True),
    ],
)
@pytest.mark.parametrize("where", ["header", "meta", "neither"])
def test_charsets(text: str, charset: str, looks_like: bool, where: str) -> None:
    """A page that does not say its charset is read if the charset shows."""
    if where == "neither" and not looks_like:
        return
    told = f"<meta charset='{charset}'>" if where == "meta" else ""
    body = page(f"<p>{text * 9}</p>", told).encode(charset)
    found = read(body, charset=charset if where == "header" else "")
    assert text.strip() in found["text"]


@pytest.mark.parametrize("charset", ["hex", "zip", "no-such", "undefined", "\0", "utf-8; x", ""])
def test_a_charset_that_is_none_is_ignored(charset: str) -> None:
    assert read("Grüße", kind="text", charset=charset)["text"] == "Grüße"


@pytest.mark.parametrize(
    ("body", "charset"), [(rb"a \ud800 b", "unicode_escape"), (b"a +2AA- b", "utf-7")]
)
def test_half_characters_do_not_reach_a_request(body: bytes, charset: str) -> None:
    html = b"<title>" + body + b"</title><p>" + body
    for found in (read(body, "text", charset), read(html, charset=charset)):
        assert json.loads(json.dumps(found).encode()) == found
        assert f"{found['title']}{found['text']}".encode()
        assert "a ? b" in found["text"]


def test_half_characters_of_a_pdf_do_not_reach_a_request() -> None:
    found = read(pdf("ABBA", means={"A": "<D800>"}), kind="pdf")
    assert found["text"] == "?BB?"


def test_a_character_that_is_cut_in_half_is_left_out() -> None:
    assert read("Grüße 世界".encode()[:-1], kind="text")["text"] == "Grüße 世"


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16"])
def test_byte_order_marks(mark: str) -> None:
    assert read("Grüße".encode(mark), kind="text")["text"] == "Grüße"


def test_text_that_is_no_page_stays_as_it_is() -> None:
    text = '{"a": [1, 2], "b": "<p>[x](y)</p>"}\n\n  # Heading'
    assert read(text, kind="text")["text"] == text


def pdf(*texts: str, means: Mapping[str, str] | None = None) -> bytes:
    writer = pypdf.PdfWriter()
    font = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Font"),
            NameObject("/Subtype"): NameObject("/Type1"),
            NameObject("/BaseFont"): NameObject("/Helvetica"),
        }
    )
    if means:
        codes = "".join(f"<{ord(letter):02x}> {code}\n" for letter, code in means.items())
        to_unicode = StreamObject()
        to_unicode.set_data(f"begincmap\n1 beginbfchar\n{codes}endbfchar\nendcmap".encode())
        font[NameObject("/ToUnicode")] = to_unicode
    for text in texts:
        made = writer.add_blank_page(300, 300)
        stream = StreamObject()
        stream.set_data(f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode())
        made[NameObject("/Contents")] = writer._add_object(stream)
        fonts = DictionaryObject({NameObject("/F1"): font})
        made[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    writer.add_metadata({"/Title": "On the moon"})
    written = io.BytesIO()
    writer.write(written)
    return written.getvalue()


def test_pdf() -> None:
    found = read(pdf("The moon has no air.", "It is far away."), kind="pdf")
    assert found == {
        "title": "On the moon",
        "text": "The moon has no air.\n\nIt is far away.",
        "truncated": False,
    }


def test_a_text_that_is_too_long_is_cut() -> None:
    found = read("x" * (MAX_TEXT + 1), kind="text")
    assert (len(found["text"]), found["truncated"]) == (MAX_TEXT, True)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("<div>" * 200_000, "html"),
        ("<a href='" * 100_000, "html"),
        ("<table><tr><td>" * 50_000, "html"),
        ("<!--" * 500_000, "html"),
        ("&#x110000;&" * 100_000, "html"),
        ("%PDF-1.4\n" + "1 0 obj <<" * 10_000, "pdf"),
        ("%PDF-1.4", "pdf"),
        ("\0" * 100_000, "html"),
        ("", "html"),
    ],
    ids=["deep", "open", "tables", "comments", "entities", "objects", "no pdf", "zeros", "empty"],
)
async def test_a_hostile_page_ends_within_the_limits(body: str, kind: str) -> None:
    """Whether it is read or not, the worker ends, and this process is not held."""
    request = {"body": b64encode(body.encode()).decode(), "kind": kind, "charset": ""}
    try:
        found = await ask_worker("optillm_hooks.web.text", request, LIMITS)  # type: ignore[arg-type]
    except OptiLLMError as exc:
        assert exc.code == "worker_failed"  # noqa: PT017 (one of two ways to end)
    else:
        assert isinstance(found, dict)


# ------------------------------------------------------------------------------- the cache


async def test_pages_are_cached_for_a_caller_and_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    downloads: list[str] = []

    async def download(url: str, *_: object) -> Download:
        downloads.append(url)
        if "bad" in url:
            raise ServiceFailed("no")
        return Download(url=url, kind="text", charset="", body=b"text", truncated=False)

    async def address(_host: str, _port: int) -> str:
        raise AssertionError

    monkeypatch.setattr("optillm_hooks.web.pages.download", download)
    cache = PageCache(clock=lambda: now)
    one, other = (
        PageReader(address_of=address, tls=lambda: True, caller=caller, cache=cache, cache_s=60)
        for caller in ("one", "other")
    )
    for reader in (one, one, other):
        assert (await reader("http://a/")).text == "text"
    assert len(downloads) == 2, "the other caller reads it itself"
    now = 61.0
    await one("http://a/")
    assert len(downloads) == 3
    for _ in range(2):
        with pytest.raises(ServiceFailed):
            await one("http://bad/")
    assert len(downloads) == 5, "a failure is not kept"


async def test_a_page_of_the_longest_characters_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    body = "\U0001f600" * MAX_TEXT

    async def download(url: str, *_: object) -> Download:
        content = body.encode()
        return Download(url=url, kind="text", charset="", body=content, truncated=False)

    async def address(_host: str, _port: int) -> str:
        raise AssertionError

    monkeypatch.setattr("optillm_hooks.web.pages.download", download)
    page = await PageReader(address_of=address, tls=lambda: True)("http://a/")
    assert page.text == body


def test_a_full_cache_drops_what_was_not_used_for_the_longest_time() -> None:
    from optillm_hooks.services import Page

    cache = PageCache(max_characters=20)
    for name in "abc":
        cache.put("", name, Page(url=name, title="", text="x" * 9))
        cache.get("", "a", 60)
    assert [cache.get("", name, 60) is not None for name in "abc"] == [True, False, True]
    cache.put("", "huge", Page(url="huge", title="", text="x" * 21))
    assert cache.get("", "huge", 60) is None
    cache.put("", "b", Page(url="b", title="", text="x" * 20))
    assert cache.get("", "b", 60) is not None
