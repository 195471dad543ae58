"""The page as people meet it, in a real headless Chromium on a real proxy: `make page`."""

import json
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.proxy import PRICE, Proxy, alias, hooked_config, model_group
from tests.upstream import HANG, Call, Script, Upstream, always

if TYPE_CHECKING:  # only this module's tests need the browser's driver
    from tests.browser import Browser

pytestmark = pytest.mark.browser

KEYS: dict[str, dict[str, object]] = {"sk-anna": {"models": [], "user_role": "internal_user"}}
WIDE, PHONE = (1280, 900), (320, 700)
SECTIONS = ("playground", "plans", "approaches", "counters")
TAB, ENTER = "\ue004", "\ue007"
ATTACK = (
    "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script> [x]"
    "(javascript:document.title='taken')"
)


def rated(call: Call, choice: int) -> str:
    """Reply with markup, so that answers differ and the second is rated highest."""
    if "rating" in call.text.lower():
        return "Rating: 9" if "Way 2" in call.text else "Rating: 3"
    way = call.index + choice + 1
    return f"Way {way}: {ATTACK}\nANSWER: {way}"


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    models = [
        model_group("base", upstream.url),
        alias("a-model-with-a-name-that-is-longer-than-a-phone-is-wide", "re2"),
    ]
    config = hooked_config(models, optillm_settings={"page": {"texts": True}})
    with Proxy(config, tmp_path_factory.mktemp("page"), keys=KEYS) as running:
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    from tests.browser import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture
def browser(chromium: "Browser", proxy: Proxy) -> Iterator["Browser"]:
    """A tab with the page, before a key is entered. The browser may complain of nothing."""
    chromium.resize(WIDE)
    chromium.open(f"{proxy.url}/optillm")
    chromium.run("sessionStorage.clear()")
    chromium.open("about:blank")
    chromium.open(f"{proxy.url}/optillm")
    assert chromium.problems == []
    yield chromium
    assert chromium.problems == []


def enter(browser: "Browser", key: str) -> None:
    browser.fill("#key", key)
    browser.click("#key-form button")
    browser.wait(lambda shown: shown.one("#playground").is_displayed())


def shows(browser: "Browser", section: str) -> bool:
    return bool(browser.one(f"#{section}").is_displayed())


def run(browser: "Browser", *approaches: str) -> None:
    """Ask in the playground. The approaches that it proposes are replaced."""
    while browser.all("#chosen button"):
        browser.click("#chosen button")
    for approach in approaches:
        browser.fill("#approach", approach + ENTER)
    browser.fill("#model", "base")
    browser.click("#run")


def ended(browser: "Browser", state: str, cards: int = 1) -> None:
    browser.wait(lambda shown: len(shown.all(f".card .state.{state}")) == cards)


def test_a_wrong_key_is_told_and_a_right_one_stays_in_the_tab(
    browser: "Browser", proxy: Proxy
) -> None:
    browser.fill("#key", "sk-wrong")
    browser.click("#key-form button")
    browser.wait(lambda shown: shown.text("#login-error"))
    assert [problem for problem in browser.problems if "401" not in problem] == []
    assert browser.run("return sessionStorage.length") == 0
    enter(browser, "sk-anna")
    assert browser.run("return [sessionStorage.length, localStorage.length]") == [1, 0]
    assert browser.run("return document.cookie + location.search") == ""
    browser.click("#forget")
    browser.wait(lambda shown: shown.one("#login").is_displayed())
    assert browser.run("return sessionStorage.length") == 0
    addresses = browser.run("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert addresses
    assert [each for each in addresses if not each.startswith(proxy.url)] == []


def test_answers_are_shown_side_by_side_as_text_with_what_they_cost(
    browser: "Browser", upstream: Upstream
) -> None:
    upstream.play(Script(reply=rated, n="ignored"))
    enter(browser, "sk-anna")
    run(browser, "none", "bon(n=2)")
    ended(browser, "done", cards=2)
    texts = [answer.text for answer in browser.all(".card .answer")]
    assert all(ATTACK in text for text in texts)
    assert browser.all("main img, main script, main iframe, main a[href^=javascript]") == []
    assert browser.run("return document.title") == "optillm-hooks"
    plain, best = [
        dict(zip(names.text.splitlines()[::2], names.text.splitlines()[1::2], strict=True))
        for names in browser.all(".card .facts")
    ]
    assert plain["Calls"] == "1"
    assert float(plain["Cost"].removeprefix("$")) > 0
    assert int(best["Calls"]) == len(upstream.calls) - 1
    billed = sum(int(each["Tokens"].replace(",", "")) for each in (plain, best))
    assert billed == upstream.bill.total_tokens
    assert "done" in browser.run("return document.getElementById('said').textContent")


def test_the_calls_of_a_run_are_estimated_before_it(browser: "Browser") -> None:
    enter(browser, "sk-anna")
    assert browser.text("#estimate") == "About 6 calls if nothing fails."
    browser.fill("#approach", f"cot_decoding{ENTER}")
    assert browser.text("#estimate") == "About 7 to 17 calls if nothing fails."
    browser.fill("#approach", f"bon(n=2){ENTER}")
    assert browser.text("#estimate").endswith("with parameters, and combinations, are not counted.")


def test_the_choices_of_an_answer_stay_apart(browser: "Browser", upstream: Upstream) -> None:
    upstream.play(Script(reply=lambda call, _: f"{call.index} is it", piece_s=0.01))
    enter(browser, "sk-anna")
    run(browser, "re2|re2")
    ended(browser, "done")
    assert {answer.text for answer in browser.all(".card .answer")} == {"0 is it", "1 is it"}


def test_a_request_is_replayed(browser: "Browser", upstream: Upstream) -> None:
    upstream.play(Script(reply=rated, n="ignored"))
    enter(browser, "sk-anna")
    run(browser, "re2&bon(n=2)")
    ended(browser, "done")
    browser.click(".foot a")
    browser.wait(lambda shown: shown.all(".axis svg"))
    assert len(browser.all(".axis .call")) == len(upstream.calls)
    assert len(browser.all(".axis .call.judge")) == 2
    names = [each.text for each in browser.all(".axis .stage-name")]
    assert [name.split(":")[0] for name in names[:2]] == ["re2", "bon"]
    assert "3 calls" not in names[0]
    won = browser.one(".box.best")
    assert "won" in won.text
    assert len(browser.all(".box")) == 2
    cost = upstream.bill.cost(PRICE.prompt, PRICE.completion)
    shown = {row.text.split("\n")[0] for row in browser.all("#plan .tiles div")}
    assert {"Cost", "Depth", "Time"} <= shown
    figures = browser.run(
        "return [...document.querySelectorAll('#plan td[data-column=Cost]')].map((e) => "
        "Number(e.textContent.replace('$', '')))"
    )
    stages = figures[: len(names)]
    assert sum(stages) == pytest.approx(cost, rel=0.01)
    assert ATTACK in browser.text("#plan .panel")
    assert browser.all("main img") == []
    browser.click("#plan a")
    browser.wait(lambda shown: shown.all("#plan-rows tbody tr"))
    assert "re2&bon(n=2)" in browser.text("#plan-rows")


def test_a_plan_that_hides_values_keeps_no_text(browser: "Browser", upstream: Upstream) -> None:
    upstream.play(Script())
    enter(browser, "sk-anna")
    run(browser, "privacy&re2")
    ended(browser, "done")
    browser.click(".foot a")
    browser.wait(lambda shown: "are not kept" in shown.text("#plan"))
    assert browser.all("#plan blockquote") == []


def test_a_run_can_be_stopped(browser: "Browser", upstream: Upstream) -> None:
    upstream.play(Script(fault=always(HANG)))
    enter(browser, "sk-anna")
    run(browser, "none", "re2")
    upstream.wait_until(lambda u: len(u.calls) == 2)
    assert not browser.one("#run").is_enabled()
    browser.click("#stop")
    ended(browser, "stopped", cards=2)
    upstream.wait_until_idle()
    assert [call.outcome for call in upstream.calls] == ["gone", "gone"]
    assert browser.one("#run").is_enabled()


def test_a_refusal_is_told_in_the_proxys_words(browser: "Browser") -> None:
    enter(browser, "sk-anna")
    run(browser, "bon(n=<b>0</b>)")
    ended(browser, "failed")
    assert "bon" in browser.text(".card .problem")
    assert browser.all(".card b") == []
    assert [problem for problem in browser.problems if "400" not in problem] == []


def test_a_script_in_the_page_does_not_run(browser: "Browser") -> None:
    browser.run(
        "const made = document.createElement('script');"
        "made.textContent = 'window.taken = true'; document.body.append(made)"
    )
    assert browser.run("return window.taken === undefined")
    assert any("Content Security Policy" in problem for problem in browser.problems)


def test_counters_are_shown_to_admins_and_others_are_told_why_not(
    browser: "Browser", proxy: Proxy
) -> None:
    enter(browser, "sk-anna")
    browser.open(f"{proxy.url}/optillm#counters")
    browser.wait(lambda shown: "admin" in shown.text("#counters"))
    assert [problem for problem in browser.problems if "403" not in problem] == []
    browser.click("#forget")
    browser.wait(lambda shown: shown.one("#login").is_displayed())
    enter(browser, proxy.master_key)
    browser.click("nav a[href='#counters']")
    browser.wait(lambda shown: "Model calls" in shown.text("#totals"))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_is_wider_than_a_phone(
    browser: "Browser", proxy: Proxy, upstream: Upstream, dark: bool
) -> None:
    upstream.play(Script(reply=rated, n="ignored"))
    enter(browser, proxy.master_key)
    run(browser, "re2&self_consistency(n=2)")
    ended(browser, "done")
    browser.resize(PHONE, dark=dark)
    addresses = [f"#{name}" for name in SECTIONS]
    addresses.append(browser.one(".foot a").get_attribute("href"))
    for address in addresses:
        browser.run("location.hash = arguments[0].split('#')[1]", address)
        name = address.split("#")[1].split("/")[0]
        browser.wait(partial(shows, section=name))
        browser.run("for (const each of document.querySelectorAll('details')) each.open = true")
        assert browser.run("return document.documentElement.scrollWidth") <= PHONE[0], address
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(json.loads(paper.replace("rgb(", "[").replace(")", "]"))) < 300) is dark


@pytest.mark.parametrize("still", [False, True], ids=["moving", "still"])
def test_bars_move_only_if_the_user_wants_it(
    browser: "Browser", upstream: Upstream, still: bool
) -> None:
    upstream.play(Script())
    enter(browser, "sk-anna")
    run(browser, "re2")
    ended(browser, "done")
    browser.resize(WIDE, still=still)
    browser.click(".foot a")
    browser.wait(lambda shown: shown.all(".axis .call"))
    name = "return getComputedStyle(document.querySelector('.axis .call')).animationName"
    assert (browser.run(name) == "none") is still


def test_all_is_done_by_keyboard_in_the_order_of_the_page(
    browser: "Browser", upstream: Upstream
) -> None:
    upstream.play(Script())
    browser.press("sk-anna", ENTER)  # the field has the focus
    browser.wait(lambda shown: shown.one("#playground").is_displayed())
    browser.run("document.body.tabIndex = -1; document.body.focus()")
    met = list[str]()
    for _ in range(30):
        browser.press(TAB)
        met.append(
            browser.run(
                "const at = document.activeElement;"
                "return at.id || at.hash || at.getAttribute('aria-label') || at.textContent"
            )
        )
        if met[-1] == "run":
            break
    links = [f"#{name}" for name in SECTIONS]
    chips = ["Remove none", "Remove self_consistency"]
    fields = ["question", "model", "max-tokens"]
    assert met == ["#main", *links, "forget", *fields, *chips, "approach", "add", "run"]
    width = "return parseFloat(getComputedStyle(document.activeElement).outlineWidth)"
    assert browser.run(width) >= 2
    browser.press(ENTER)
    ended(browser, "done", cards=2)


def test_every_control_has_a_name(browser: "Browser", upstream: Upstream) -> None:
    upstream.play(Script())
    enter(browser, "sk-anna")
    run(browser, "re2")
    ended(browser, "done")
    controls = [
        each
        for each in browser.all("input, textarea, button, a, summary, [role=img]")
        if each.is_displayed()
    ]
    assert len(controls) > 10
    assert [each.tag_name for each in controls if not each.accessible_name] == []
    assert browser.run("return document.querySelectorAll('h1:not([hidden] h1)').length") == 1
