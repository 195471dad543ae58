"""Our part of the proxy's start: its log, and the problems of its configuration."""

import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from optillm_hooks.gateway.startup import log_problems, use_litellm_logging
from tests.proxy import alias, hooked_config, model_group

MODEL = model_group("base", "http://127.0.0.1:9")


def config(*models: dict[str, Any], **settings: object) -> dict[str, Any]:
    return hooked_config([MODEL, *models], optillm_settings=settings)


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_MASTER_KEY", "sk-none")


def stock_loggers(monkeypatch: pytest.MonkeyPatch) -> tuple[logging.Logger, logging.Logger]:
    """Return our logger and LiteLLM's, set up as they are in a stock proxy; so is the root.

    Called within a test: before it, pytest adds handlers of its own.
    """
    ours, theirs = logging.getLogger("optillm_hooks"), logging.getLogger("LiteLLM Proxy")
    for logger in (logging.root, ours, theirs):
        monkeypatch.setattr(logger, "level", logging.NOTSET)
        monkeypatch.setattr(logger, "handlers", [])
        monkeypatch.setattr(logger, "propagate", True)
    logging.root.setLevel(logging.WARNING)
    theirs.addHandler(logging.NullHandler())
    monkeypatch.setitem(sys.modules, "litellm.proxy.proxy_server", SimpleNamespace())
    return ours, theirs


class Kept(logging.Handler):
    """Keeps the records that it gets."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.mark.parametrize("level", [logging.NOTSET, logging.INFO, logging.DEBUG])
def test_our_logger_follows_litellms(monkeypatch: pytest.MonkeyPatch, level: int) -> None:
    ours, theirs = stock_loggers(monkeypatch)
    theirs.setLevel(level)
    use_litellm_logging()
    assert ours.level == (level or logging.WARNING)
    assert not ours.propagate
    assert ours.handlers
    kept, dropped = Kept(logging.INFO), Kept(logging.INFO)
    theirs.addHandler(dropped)
    theirs.handlers = [kept]  # as LiteLLM does when it turns to JSON
    ours.handle(ours.makeRecord("n", logging.INFO, "f", 1, "said", (), None))
    ours.handle(ours.makeRecord("n", logging.DEBUG, "f", 1, "below the handler's", (), None))
    assert [record.msg for record in kept.records] == ["said"]
    assert dropped.records == []


def test_a_logging_configuration_of_the_operators_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = stock_loggers(monkeypatch)
    ours.setLevel(logging.DEBUG)
    logging.root.addHandler(logging.NullHandler())
    theirs.setLevel(logging.INFO)
    use_litellm_logging()
    assert (ours.level, ours.handlers, ours.propagate) == (logging.DEBUG, [], True)


def test_outside_a_proxy_nothing_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = stock_loggers(monkeypatch)
    monkeypatch.delitem(sys.modules, "litellm.proxy.proxy_server")
    use_litellm_logging()
    assert (ours.level, ours.handlers) == (logging.NOTSET, [])


def test_all_problems_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = config(alias("a", "mao"), alias("b", "moa("), alias("c", "moa"), max_choice=3)
    proxy = SimpleNamespace(proxy_config=SimpleNamespace(config=wrong))
    monkeypatch.setitem(sys.modules, "litellm.proxy.proxy_server", proxy)
    log_problems()
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 3
