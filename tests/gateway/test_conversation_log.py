"""The log of conversations: what it leaves out, and what happens if texts cannot be searched."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import litellm
import pytest
from litellm.utils import custom_llm_setup

from optillm_hooks.gateway import observers, provider
from optillm_hooks.gateway.conversation_log import SEARCHES, files_in
from optillm_hooks.gateway.observers import Ended, Started, Watch
from optillm_hooks.settings import ConversationLogSettings
from tests.proxy import alias, model_group
from tests.upstream import Script, Upstream

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("litellm_in_this_loop")]
ADDRESS, KEY = "ann.lee@example.org", "sk-abcdef1234567890abcdef"
ASKED = [{"role": "user", "content": f"Who is {ADDRESS}? My key is {KEY}."}]


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


@pytest.fixture
def router(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Iterator[litellm.Router]:
    handler = {"provider": "optillm", "custom_handler": provider}
    monkeypatch.setattr(litellm, "custom_provider_map", [handler])
    custom_llm_setup()
    upstream.play(Script())
    aliases = [alias("reread", "re2"), alias("hidden", "privacy")]
    made = litellm.Router([model_group("base", upstream.url), *aliases], num_retries=0)
    provider.use(made)
    yield made
    provider.use(None)


def only_line(folder: Path) -> dict[str, Any]:
    [written] = folder.iterdir()
    line: dict[str, Any] = json.loads(written.read_bytes())
    return line


async def logged(
    router: litellm.Router,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    privacy: dict[str, Any] | None = None,
    model: str = "reread",
    asked: Sequence[Mapping[str, object]] = ASKED,
    **log: object,
) -> dict[str, Any]:
    """Return the line of a request with these settings."""
    settings = {"conversation_log": {"directory": str(folder), **log}, "privacy": privacy or {}}
    monkeypatch.setattr(litellm, "optillm_settings", settings, raising=False)
    await router.acompletion(model=model, messages=[*asked])
    await SEARCHES.ended()
    files = files_in(str(folder), ConversationLogSettings().max_bytes_per_day, None)
    files.thread.shutdown()  # once it has written
    return only_line(folder)


async def test_credentials_only(
    router: litellm.Router, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line = await logged(router, monkeypatch, tmp_path, redact="credentials")
    text = line["messages"][0]["content"]
    assert line["redacted"] == "credentials"
    assert (ADDRESS in text, KEY in text) == (True, False)


async def test_credentials_are_replaced_whatever_the_operator_calls_private(
    router: litellm.Router, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line = await logged(router, monkeypatch, tmp_path, {"entities": ["PHONE"]})
    text = line["messages"][0]["content"]
    assert (ADDRESS in text, KEY in text) == (True, False)


async def test_ids_of_tool_calls_are_numbers(
    router: litellm.Router, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A client can write anything into them, and they are not searched for private values."""
    called = {"type": "function", "function": {"name": "look", "arguments": "{}"}}
    turns: list[dict[str, object]] = [
        {"role": "assistant", "tool_calls": [{"id": each, **called} for each in (KEY, ADDRESS)]},
        {"role": "tool", "tool_call_id": ADDRESS, "content": "seen"},
        {"role": "tool", "tool_call_id": KEY, "content": "seen"},
    ]
    line = await logged(router, monkeypatch, tmp_path, asked=(*ASKED, *turns))
    _, asking, *answers = line["messages"]
    assert [call["id"] for call in asking["tool_calls"]] == ["call_1", "call_2"]
    assert [answer["tool_call_id"] for answer in answers] == ["call_2", "call_1"]
    assert KEY not in json.dumps(line)
    assert ADDRESS not in json.dumps(line)


async def test_no_texts(
    router: litellm.Router, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line = await logged(router, monkeypatch, tmp_path, redact="texts")
    assert line["messages"] == [{"role": "user", "content": "redacted-by-litellm"}]
    assert line["choices"][0]["message"]["content"] == "redacted-by-litellm"
    assert line["calls"] == 1


async def test_a_plan_that_hides_private_values_from_models_hides_the_texts(
    router: litellm.Router, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line = await logged(router, monkeypatch, tmp_path, model="hidden", redact="credentials")
    assert line["redacted"] == "texts"
    assert line["messages"] == [{"role": "user", "content": "redacted-by-litellm"}]


@pytest.mark.parametrize(
    ("privacy", "said"),
    [
        ({"detectors": ["presidio_service"]}, "PRESIDIO_ANALYZER_API_BASE"),
        ({"presidio_url": "http://127.0.0.1:9"}, "did not answer"),
    ],
    ids=["missing", "down"],
)
async def test_what_cannot_be_searched_is_left_out(
    router: litellm.Router,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    privacy: dict[str, Any],
    said: str,
) -> None:
    line = await logged(router, monkeypatch, tmp_path, privacy)
    assert line["redacted"] == "texts"
    assert line["messages"] == [{"role": "user", "content": "redacted-by-litellm"}]
    [record] = [record for record in caplog.records if "conversation_log" in record.getMessage()]
    assert (record.levelno, said in record.getMessage()) == (logging.WARNING, True)


async def test_an_observer_with_a_bug_costs_nobody_an_answer(
    router: litellm.Router, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Watch):
        def ended(self, _end: Ended, /) -> None:
            raise ValueError("a text of the client's")

    class Observer:
        def begin(self, _started: Started, /) -> Watch:
            return Broken()

    monkeypatch.setattr(observers, "OBSERVERS", [Observer(), observers.LogLines()])
    caplog.set_level(logging.INFO, "optillm_hooks")
    answer = await router.acompletion(model="reread", messages=ASKED)
    assert "42" in answer.choices[0].message.content
    told = [record.getMessage() for record in caplog.records if "optillm" in record.name]
    assert told[0].startswith("optillm: an observer failed: ValueError at ")
    assert "text of the client" not in told[0]
    assert "approach=re2" in told[1]
