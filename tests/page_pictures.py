"""Makes the pictures of docs/page.md: `python -m tests.page_pictures`, with `make page` run before.

The provider is scripted, so that pictures made again differ only in times.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.browser import PHONE, WIDE, Browser, chromium
from tests.proxy import ROOT, Proxy, alias, hooked_config, model_group
from tests.upstream import Call, Script, Upstream

PICTURES: Final = ROOT / "docs" / "images"
_RIGHT: Final = (
    "Call the price of the ball x. Then the bat costs x + 1.00, and together they cost\n"
    "2x + 1.00 = 1.10, so 2x = 0.10 and x = 0.05.\n\nThe ball costs 5 cents."
)
_WRONG: Final = (
    "The bat costs one dollar, so the ball costs 1.10 - 1.00 = 0.10.\n\nThe ball costs 10 cents."
)


def _reply(call: Call, _: int) -> str:
    if "rating" in call.text.lower():
        return "Rating: 9" if _RIGHT in call.text else "Rating: 2"
    if "temperature" not in call.body:
        return _WRONG
    return _RIGHT if call.index % 3 else _WRONG


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder, Upstream() as upstream, chromium() as browser:
        upstream.play(Script(reply=_reply, latency_s=0.4, piece_s=0.02))
        models = [
            model_group("gpt-4o-mini", upstream.url, model="cerebras/gpt-4o-mini"),
            alias("gpt-4o-mini-careful", "self_consistency(n=5)", base="gpt-4o-mini"),
        ]
        with Proxy(hooked_config(models), Path(folder)) as proxy:
            _take(browser, proxy)


def _take(browser: Browser, proxy: Proxy) -> None:
    browser.resize(WIDE)
    browser.open(f"{proxy.url}/optillm")
    browser.fill("#key", proxy.master_key)
    browser.click("#key-form button")
    browser.wait(lambda shown: shown.one("#playground").is_displayed())
    browser.fill("#approach", "bon(n=4)")
    browser.click("#add")
    browser.click("#run")
    browser.wait(lambda shown: len(shown.all(".state.done")) == 3)
    browser.shoot(PICTURES / "page-playground.png")
    browser.resize(PHONE, dark=True)
    browser.shoot(PICTURES / "page-playground-phone.png")
    browser.resize(WIDE)
    browser.all(".foot a")[-1].click()
    browser.wait(lambda shown: shown.all(".axis svg"))
    browser.shoot(PICTURES / "page-replay.png")
    browser.resize(PHONE)
    browser.shoot(PICTURES / "page-replay-phone.png")
    assert not browser.problems


if __name__ == "__main__":
    main()
