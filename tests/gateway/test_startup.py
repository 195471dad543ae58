"""Our part of the proxy's start: its log, and the problems of its configuration."""

import gc
import importlib
import logging
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from litellm.litellm_core_utils.streaming_handler import CustomStreamWrapper

from optillm_hooks.gateway.startup import (
    keep_finalizers_off_contexts,
    log_problems,
    remember_what_is_missing,
    use_litellm_logging,
)
from tests.proxy import alias, hooked_config, model_group

MODEL = model_group("base", "http://127.0.0.1:9")


def config(*models: dict[str, Any], **settings: object) -> dict[str, Any]:
    return hooked_config([MODEL, *models], optillm_settings=settings)


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_MASTER_KEY", "sk-none")


@contextmanager
def told(caplog: pytest.LogCaptureFixture, text: str) -> Iterator[Event]:
    """Yield an event that is set once a line with `text` is logged, in whatever thread."""
    found = Event()

    def look(record: logging.LogRecord) -> bool:
        if text in record.getMessage():
            found.set()
        return True

    caplog.handler.addFilter(look)
    yield found
    caplog.handler.removeFilter(look)


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


def test_what_only_the_file_shows_and_what_only_a_connection_shows_is_logged_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The proxy has put values in place of the references; it does not wait for a connection."""
    (tmp_path / "config.yaml").write_text("a: [{b: os.environ/OPTILLM_TEST_NO_SUCH_KEY}]")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        settings = {
            "model_list": [],
            "general_settings": {"database_url": f"postgresql://127.0.0.1:{port}/name"},
        }
        proxy = SimpleNamespace(
            proxy_config=SimpleNamespace(config=settings),
            user_config_file_path=str(tmp_path / "config.yaml"),
        )
        monkeypatch.setitem(sys.modules, "litellm.proxy.proxy_server", proxy)
        with told(caplog, "general_settings.database_url: no connection") as connected:
            log_problems()
            assert connected.wait(30)
    [first, second] = caplog.records
    assert "a[0].b: the environment variable OPTILLM_TEST_NO_SUCH_KEY is not set" in first.message
    assert first.levelno == second.levelno == logging.WARNING


def test_a_stream_that_is_collected_sets_no_context_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Put back after the test.
    monkeypatch.setattr(CustomStreamWrapper, "__del__", CustomStreamWrapper.__del__)
    stock_loggers(monkeypatch)
    assert collecting_a_stream_sets_a_variable()
    keep_finalizers_off_contexts()
    assert collecting_a_stream_sets_a_variable() == (sys.version_info >= (3, 12))
    keep_finalizers_off_contexts()


def collecting_a_stream_sets_a_variable() -> bool:
    told: ContextVar[bool] = ContextVar("told", default=False)
    stream = CustomStreamWrapper.__new__(CustomStreamWrapper)
    stream.logging_obj = SimpleNamespace(
        _restore_correlation_context_if_unclaimed=lambda: told.set(True), stream=stream
    )
    del stream
    gc.collect()
    return told.get()


def test_python_does_not_look_again_for_a_package_that_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Looks:
        found = 0

        def find_spec(self, name: str, *_: object) -> None:
            self.found += name == "prisma"

    looks = Looks()
    monkeypatch.setitem(sys.modules, "prisma", None)  # put back after the test
    del sys.modules["prisma"]
    stock_loggers(monkeypatch)
    remember_what_is_missing()
    monkeypatch.setattr(sys, "meta_path", [looks, *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match="prisma"):
        importlib.import_module("prisma.errors")
    assert looks.found == 0
    remember_what_is_missing()
