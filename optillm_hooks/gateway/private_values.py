"""How private values are found, as the operator has set it: by Presidio, or by other detectors.

Only Presidio's analyzer is asked, as LiteLLM's guardrail of the same name asks it too. What stands
in place of a value is decided here, because LiteLLM numbers the values of each text anew.
"""

import hmac
from collections.abc import Iterator, Sequence
from functools import cache, partial
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any, Final

from anyio import to_thread
from litellm.llms.custom_httpx.http_handler import get_async_httpx_client
from litellm.types.llms.custom_http import httpxSpecialProvider
from pydantic import BaseModel, TypeAdapter

from optillm_hooks.errors import SampleError
from optillm_hooks.fanout import outcomes
from optillm_hooks.gateway.deployments import proxy_module
from optillm_hooks.services import Detector, Privacy, PrivateValue, ServiceFailed
from optillm_hooks.settings import PrivacySettings, presidio_address

ENTRY_POINT_GROUP: Final = "optillm_hooks.detectors"
"""Other packages name a `Detector` under it."""

_SERVICE, _IN_PROCESS = "presidio_service", "presidio"

_NO_ADDRESS: Final = (
    "the operator has to set PRESIDIO_ANALYZER_API_BASE, or presidio_url in "
    "optillm_settings.privacy"
)
_CHUNK: Final = 50_000
_OVERLAP: Final = 200
"""Characters of a text that the analyzer gets at once, and those that two chunks share."""

_AT_ONCE: Final = 8
_TIMEOUT_S: Final = 60.0


class _Result(BaseModel):
    """One result of the analyzer. Its offsets count characters of Python."""

    start: int
    end: int
    entity_type: str
    score: float


_RESULTS: Final = TypeAdapter(list[_Result])


@cache
def privacy_of(settings: PrivacySettings) -> Privacy:
    """Return how private values are found. It does no work: a detector begins when it is used."""
    names = settings.detectors
    if names is None:
        names = (_SERVICE,) if presidio_address(settings) else ()
    missing = [problem for name in names if (problem := _missing(name, settings))]
    found = () if missing else tuple(_detector(name, settings) for name in names)
    key = getattr(proxy_module(), "master_key", None)
    seed = str(key).encode() if key else Privacy().secret
    return Privacy(
        secret=hmac.digest(seed, b"optillm_hooks.privacy", "sha256"),
        detectors=found,
        missing="; ".join(missing),
        entities=settings.entities,
        allow=settings.allow,
        deny=settings.deny,
        regions=settings.regions,
        attachments=settings.attachments,
    )


def _missing(name: str, settings: PrivacySettings) -> str:
    """Return what a detector needs before it can be used; empty if nothing."""
    if name == _SERVICE:
        return "" if presidio_address(settings) else _NO_ADDRESS
    if name != _IN_PROCESS:
        known = sorted(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))
        if name in known:
            return ""
        return (
            f"optillm_settings.privacy.detectors: unknown detector {name!r}; known: "
            f"{', '.join([_SERVICE, _IN_PROCESS, *known])}"
        )
    if find_spec("presidio_analyzer") is None:
        return "the operator has to install optillm-hooks[privacy]"
    model = settings.spacy_model
    if Path(model).is_dir() or (model.isidentifier() and find_spec(model) is not None):
        return ""
    return (
        f"the operator has to install the spaCy model {model!r} (python -m spacy download "
        f"{model}): it is not downloaded while the proxy runs"
    )


def _detector(name: str, settings: PrivacySettings) -> Detector:
    if name == _SERVICE:
        return partial(_ask_service, settings, str(presidio_address(settings)))
    if name == _IN_PROCESS:
        return partial(_ask_in_process, settings)
    [entry, *_] = entry_points(group=ENTRY_POINT_GROUP, name=name)
    loaded: Detector = entry.load()
    return loaded


def _moved(result: Any, by: int) -> PrivateValue:
    return PrivateValue(by + result.start, by + result.end, result.entity_type)


# ------------------------------------------------------------------------------ the service


async def _ask_service(
    settings: PrivacySettings, address: str, texts: Sequence[str], /
) -> list[list[PrivateValue]]:
    """Return what the analyzer finds in each text, asked for a few chunks at a time."""
    client = get_async_httpx_client(llm_provider=httpxSpecialProvider.GuardrailCallback)
    url = f"{address.rstrip('/')}/analyze"
    chunks = [(at, start, part) for at, text in enumerate(texts) for start, part in _chunks(text)]
    found: list[list[PrivateValue]] = [[] for _ in texts]
    for first in range(0, len(chunks), _AT_ONCE):
        some = chunks[first : first + _AT_ONCE]
        calls = [partial(_analyzed, client, url, settings, part) for _, _, part in some]
        for (at, start, _), result in zip(some, await outcomes(calls), strict=True):
            if isinstance(result, SampleError):
                raise result
            found[at] += [
                PrivateValue(start + r.start, start + r.end, r.entity_type) for r in result
            ]
    return found


def _chunks(text: str) -> Iterator[tuple[int, str]]:
    """Yield the chunks of `text` that are worth a call, with their offsets."""
    for start in range(0, max(1, len(text) - _OVERLAP), _CHUNK - _OVERLAP):
        chunk = text[start : start + _CHUNK]
        if any(map(str.isalpha, chunk)):
            yield start, chunk


async def _analyzed(
    client: Any, url: str, settings: PrivacySettings, text: str
) -> Sequence[_Result]:
    body = {
        "text": text,
        "language": settings.language,
        "entities": list(settings.presidio_entities),
        "score_threshold": settings.score,
    }
    try:
        response = await client.post(url, json=body, timeout=_TIMEOUT_S)
        return _checked(_RESULTS.validate_python(response.json()), text, settings)
    except Exception as exc:  # whatever a client of HTTP raises: nothing may be sent unsearched
        raise ServiceFailed("the Presidio analyzer did not answer") from exc


def _checked(results: Sequence[_Result], text: str, settings: PrivacySettings) -> Sequence[_Result]:
    """Return the results that count.

    Raises:
        ValueError: one is outside the text.
    """
    if any(not 0 <= each.start < each.end <= len(text) for each in results):
        raise ValueError("a result is outside its text")
    wanted = frozenset(settings.presidio_entities)
    return [r for r in results if r.score >= settings.score and r.entity_type in wanted]


# -------------------------------------------------------------------------- in this process

_loading: Final = Lock()


async def _ask_in_process(
    settings: PrivacySettings, texts: Sequence[str], /
) -> list[list[PrivateValue]]:
    """Return what Presidio finds in each text. It runs in a thread."""

    def analyze() -> list[list[PrivateValue]]:
        with _loading:  # or concurrent first requests would load the model several times
            engine = _engine(settings.language, settings.spacy_model)
        return [_analyzed_here(engine, settings, text) for text in texts]

    try:
        return await to_thread.run_sync(analyze, abandon_on_cancel=True)
    except Exception as exc:  # whatever a model's pipeline raises: nothing may be sent unsearched
        raise ServiceFailed("Presidio failed; see the proxy's log") from exc


@cache
def _engine(language: str, model: str) -> Any:
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    models = [{"lang_code": language, "model_name": model}]
    provider = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": models})
    return AnalyzerEngine(nlp_engine=provider.create_engine(), supported_languages=[language])


def _analyzed_here(engine: Any, settings: PrivacySettings, text: str) -> list[PrivateValue]:
    known = set(engine.get_supported_entities(settings.language))
    wanted = [name for name in settings.presidio_entities if name in known]
    found: list[PrivateValue] = []
    for start, chunk in _chunks(text) if wanted else ():
        results = engine.analyze(
            text=chunk, language=settings.language, entities=wanted, score_threshold=settings.score
        )
        found += [_moved(each, start) for each in results]
    return found
