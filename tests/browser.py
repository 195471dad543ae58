"""A headless Chromium that shows the page of a proxy under test, driven by its own driver."""

import shutil
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from selenium.common.exceptions import (
    NoSuchElementException,
    StaleElementReferenceException,
    TimeoutException,
)
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

WIDE: Final = (1280, 900)
PHONE: Final = (320, 700)
_WITHIN_S: Final = 30.0


@contextmanager
def chromium() -> Iterator["Browser"]:
    """Yield the machine's Chromium, which `make page` installs. Nothing else is downloaded."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert browser, "there is no Chromium: `make page` installs it"
    assert driver, "there is no chromedriver: `make page` installs it"
    options = ChromeOptions()
    options.binary_location = browser
    for argument in (
        "--headless=new",
        "--no-sandbox",  # it runs as root in a container
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = Chrome(options=options, service=Service(driver))
    try:
        yield Browser(running)
    finally:
        running.quit()


class Browser:
    """One tab."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def resize(self, size: tuple[int, int], *, dark: bool = False, still: bool = True) -> None:
        """Make the view this large, with the user's preferences of colours and motion."""
        width, height = size
        phone = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": width < 600}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, url: str) -> None:
        self._driver.get(url)

    def forget(self) -> None:
        """Empty the tab's storage."""
        self.run("sessionStorage.clear()")

    def run(self, script: str, *arguments: object) -> Any:
        """Return what a script returns."""
        return self._driver.execute_script(script, *arguments)

    def one(self, selector: str) -> Any:
        return self._driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[Any]:
        return list(self._driver.find_elements(By.CSS_SELECTOR, selector))

    def text(self, selector: str) -> str:
        return str(self.one(selector).text)

    def fill(self, selector: str, text: str) -> None:
        field = self.one(selector)
        field.clear()
        field.send_keys(text)

    def click(self, selector: str) -> None:
        self.one(selector).click()

    def press(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        self._driver.switch_to.active_element.send_keys(*keys)

    def wait(self, holds: Callable[["Browser"], object]) -> None:
        """Wait until `holds`; an element that is not there yet, or not any more, is waited for.

        Raises:
            AssertionError: it does not hold in time; with what the page shows.
        """
        waiting = WebDriverWait(
            self._driver, _WITHIN_S, 0.05, (NoSuchElementException, StaleElementReferenceException)
        )
        try:
            waiting.until(lambda _: holds(self))
        except TimeoutException:
            said = f"not so: {self.text('main')[-1500:]}\n{self.problems}"
            raise AssertionError(said) from None

    @property
    def problems(self) -> list[str]:
        """What the browser has complained about since the last look: errors, broken policies."""
        entries = self._driver.get_log("browser")
        return [each["message"] for each in entries if each["level"] == "SEVERE"]

    def shoot(self, path: Path) -> None:
        """Save a picture of what is in view and below it, two pixels for each of the page's."""
        asked = {"format": "png", "captureBeyondViewport": True}
        shown = self._driver.execute_cdp_cmd("Page.captureScreenshot", asked)
        path.write_bytes(b64decode(shown["data"]))
