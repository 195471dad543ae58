"""Detectors besides the built-in ones: what is missing is said, what fails fails the request."""

import asyncio
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from optillm_hooks.gateway import private_values
from optillm_hooks.gateway.private_values import privacy_of
from optillm_hooks.services import PrivateValue, ServiceFailed
from optillm_hooks.settings import PrivacySettings

pytestmark = pytest.mark.anyio


def settings(**given: Any) -> PrivacySettings:
    return PrivacySettings.model_validate(given)


@pytest.fixture(autouse=True)
def nothing_known_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PRESIDIO_ANALYZER_API_BASE", raising=False)
    privacy_of.cache_clear()
    private_values._engine.cache_clear()
    yield
    privacy_of.cache_clear()
    private_values._engine.cache_clear()


@pytest.mark.parametrize(
    ("given", "installed", "said"),
    [
        ({"detectors": ["presidio_service"]}, (), r"PRESIDIO_ANALYZER_API_BASE"),
        ({"detectors": ["presido"]}, (), r"unknown detector 'presido'; known: presidio_service"),
        ({"detectors": ["presidio"]}, (), r"optillm-hooks\[privacy\]"),
        ({"detectors": ["presidio"]}, ("presidio_analyzer",), r"spacy download en_core_web_lg"),
    ],
)
def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, given: Any, installed: Sequence[str], said: str
) -> None:
    monkeypatch.setattr(private_values, "find_spec", lambda name: name in installed or None)
    privacy = privacy_of(settings(**given))
    assert privacy.detectors == ()
    assert re.search(said, privacy.missing)


def test_the_service_is_used_where_litellm_has_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert privacy_of(settings()).detectors == ()
    privacy_of.cache_clear()
    monkeypatch.setenv("PRESIDIO_ANALYZER_API_BASE", "http://127.0.0.1:9")
    assert len(privacy_of(settings()).detectors) == 1
    assert privacy_of(settings(detectors=[])).detectors == ()


async def test_a_package_can_offer_a_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    async def found(texts: Sequence[str]) -> Sequence[Sequence[PrivateValue]]:
        return [[] for _ in texts]

    module = ModuleType("of_package")
    vars(module)["detector"] = found
    monkeypatch.setitem(sys.modules, "of_package", module)
    entry = EntryPoint("mine", "of_package:detector", private_values.ENTRY_POINT_GROUP)
    monkeypatch.setattr(
        private_values, "entry_points", lambda **by: EntryPoints([entry]).select(**by)
    )
    assert privacy_of(settings(detectors=["mine"])).detectors == (found,)


# --------------------------------------------------------------------------------- the service


class Client:
    """An HTTP client that gives out replies; what is no reply is raised."""

    def __init__(self, *replies: Any) -> None:
        self._replies = list(replies)
        self.sent: list[Any] = []

    async def post(self, url: str, *, json: Any, **_: float) -> Any:
        self.sent.append((url, json))
        await asyncio.sleep(0)
        reply = self._replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return SimpleNamespace(json=lambda: reply)


async def ask(
    monkeypatch: pytest.MonkeyPatch, client: Client, *texts: str, **given: Any
) -> Sequence[Sequence[PrivateValue]]:
    monkeypatch.setattr(private_values, "get_async_httpx_client", lambda **_: client)
    [detector] = privacy_of(
        settings(presidio_url="http://p/", detectors=["presidio_service"], **given)
    ).detectors
    return await detector(texts)


def result(start: int, end: int, entity: str = "PERSON", score: float = 0.85) -> dict[str, Any]:
    return {"start": start, "end": end, "entity_type": entity, "score": score, "more": None}


async def test_the_analyzer_gets_text_language_entities_and_threshold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client([result(0, 3), result(4, 5, score=0.1), result(4, 5, "DATE_TIME")], [])
    found = await ask(monkeypatch, client, "Ann x", "y", "42 ...", score=0.4, language="de")
    assert found == [[PrivateValue(0, 3, "PERSON")], [], []]
    url, body = client.sent[0]
    assert url == "http://p/analyze"
    assert (body["text"], body["language"], body["score_threshold"]) == ("Ann x", "de", 0.4)
    assert "PERSON" in body["entities"]
    assert "DATE_TIME" not in body["entities"]
    assert len(client.sent) == 2  # a text without letters is not worth a call


async def test_a_long_text_is_asked_about_in_chunks_that_overlap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "a" * 120_000
    client = Client([result(49_990, 50_000)], [result(190, 200)], [])
    [found] = await ask(monkeypatch, client, text)
    assert [len(body["text"]) for _, body in client.sent] == [50_000, 50_000, 20_400]
    assert found == [PrivateValue(49_990, 50_000, "PERSON")] * 2


@pytest.mark.parametrize(
    "bad",
    [
        OSError("refused"),
        {"error": "no"},
        [{"start": 0}],
        [result(0, 99)],
        [result(2, 1)],
        "text",
        None,
    ],
)
async def test_an_answer_that_cannot_be_used_fails_the_request(
    monkeypatch: pytest.MonkeyPatch, bad: Any
) -> None:
    with pytest.raises(ServiceFailed, match="did not answer"):
        await ask(monkeypatch, Client(bad), "Ann")


# ----------------------------------------------------------------------------- in this process


class Engine:
    """Presidio's engine, which finds "Ann"."""

    made: list[Any] = []  # noqa: RUF012 (counts the engines)

    def __init__(self, *, nlp_engine: Any, supported_languages: list[str]) -> None:
        self.made.append((nlp_engine, supported_languages))

    def get_supported_entities(self, _language: str) -> list[str]:
        return ["PERSON"]

    def analyze(
        self, *, text: str, language: str, entities: list[str], score_threshold: float
    ) -> list[Any]:
        assert (language, entities, score_threshold) == ("en", ["PERSON"], 0.5)
        if text == "broken":
            raise ValueError(text)
        at = text.find("Ann")
        return [SimpleNamespace(start=at, end=at + 3, entity_type="PERSON")] if at >= 0 else []


@pytest.fixture
def presidio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    package, nlp = ModuleType("presidio_analyzer"), ModuleType("presidio_analyzer.nlp_engine")

    class Provider:
        def __init__(self, *, nlp_configuration: Any) -> None:
            self._configuration = nlp_configuration

        def create_engine(self) -> Any:
            return self._configuration

    Engine.made = []
    vars(package)["AnalyzerEngine"], vars(nlp)["NlpEngineProvider"] = Engine, Provider
    monkeypatch.setitem(sys.modules, "presidio_analyzer", package)
    monkeypatch.setitem(sys.modules, "presidio_analyzer.nlp_engine", nlp)
    monkeypatch.setattr(private_values, "find_spec", lambda name: name == "presidio_analyzer")
    [detector] = privacy_of(settings(detectors=["presidio"], spacy_model=str(tmp_path))).detectors
    return detector


async def test_concurrent_first_requests_load_one_engine(presidio: Any, tmp_path: Path) -> None:
    found = await asyncio.gather(*(presidio(["x Ann", "y"]) for _ in range(4)))
    assert found == [[[PrivateValue(2, 5, "PERSON")], []]] * 4
    [(configuration, languages)] = Engine.made
    assert languages == ["en"]
    assert configuration["models"] == [{"lang_code": "en", "model_name": str(tmp_path)}]


async def test_an_engine_that_fails_fails_the_request(presidio: Any) -> None:
    with pytest.raises(ServiceFailed, match="Presidio failed"):
        await presidio(["broken"])
