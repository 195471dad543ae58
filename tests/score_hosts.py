"""Fakes of hosts that score: the routes of vLLM, Cohere and Text Embeddings Inference.

They are stricter than the real ones: a field that the real host does not know is refused.
"""

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

TOO_LONG: Final = 400
"""Words of a question and an answer together that the hosts refuse."""

Score = Callable[[str, str], float]
"""Returns the score of an answer to a question."""

_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    "/score": frozenset({"model", "text_1", "text_2"}),
    "/pooling": frozenset({"model", "messages"}),
    "/rerank": frozenset({"model", "query", "documents", "top_n"}),
    "/v2/rerank": frozenset({"model", "query", "documents", "top_n", "max_tokens_per_doc"}),
    "/tei/rerank": frozenset({"query", "texts", "raw_scores", "truncate", "return_text"}),
}
_MAX_BATCH: Final = 32
"""Text Embeddings Inference's default `--max-client-batch-size`."""


def last_number(_: str, answer: str) -> float:
    """Return the last number of an answer."""
    return float(re.findall(r"-?\d+(?:\.\d+)?", answer)[-1])


@dataclass(slots=True)
class ScoreHost:
    """What the host answers, and what it was asked. `json_host(host)` serves it."""

    score: Score = last_number
    fails: int | None = None
    """The status that every call fails with."""

    opened: threading.Event = field(default_factory=threading.Event)
    """Calls wait until it is set."""

    calls: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])

    def __post_init__(self) -> None:
        self.opened.set()

    def play(self, score: Score = last_number, fails: int | None = None) -> None:
        """Forget the calls so far, and answer in this way."""
        self.score, self.fails = score, fails
        self.calls = []

    def __call__(self, path: str, body: Any) -> tuple[int, Any]:
        self.calls.append((path, body))
        self.opened.wait(30)
        if self.fails is not None:
            return self.fails, {"error": {"message": "the host says no", "code": self.fails}}
        unknown = set(body) - _FIELDS.get(path, frozenset())
        if path not in _FIELDS or unknown:
            return 422, {"message": f"unknown: {path} {sorted(unknown)}"}
        pairs = _pairs(path, body)
        if len(pairs) > _MAX_BATCH:
            return 413, {"error": "batch size too large", "error_type": "Validation"}
        words = [len(f"{asked} {answer}".split()) for asked, answer in pairs]
        if max(words) > TOO_LONG:
            return 400, {"error": {"message": "maximum context length exceeded", "code": 400}}
        return 200, _document(path, body, [self.score(*pair) for pair in pairs], sum(words))


def _pairs(path: str, body: Mapping[str, Any]) -> list[tuple[str, str]]:
    if path == "/score":
        return [(body["text_1"], text) for text in body["text_2"]]
    if path == "/pooling":
        *before, last = body["messages"]
        assert last["role"] == "assistant"
        return [(before[-1]["content"], last["content"])]
    return [(body["query"], text) for text in body.get("documents") or body["texts"]]


def _document(path: str, body: Mapping[str, Any], scores: list[float], words: int) -> Any:
    usage = {"prompt_tokens": words, "total_tokens": words}
    best = sorted(range(len(scores)), key=lambda at: -scores[at])
    head = {"id": "x-1", "object": "list", "created": 1_700_000_000, "model": body.get("model")}
    if path == "/score":
        data = [{"index": at, "object": "score", "score": s} for at, s in enumerate(scores)]
        return {**head, "data": data, "usage": usage}
    if path == "/pooling":
        rewards = [[0.0], [1.5], [scores[0]]]  # one for each token
        data = [{"index": 0, "object": "pooling", "data": rewards}]
        return {**head, "data": data, "usage": usage}
    if path == "/tei/rerank":
        return [{"index": at, "score": scores[at]} for at in best]
    results = [{"index": at, "relevance_score": scores[at]} for at in best]
    if path == "/v2/rerank":
        meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
        return {"id": "x-1", "results": results, "meta": meta}
    documents = body["documents"]
    shown = [{**each, "document": {"text": documents[each["index"]]}} for each in results]
    return {"id": "x-1", "model": body["model"], "usage": usage, "results": shown}
