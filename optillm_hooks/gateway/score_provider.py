"""The custom LLM provider `optillm-score`: scoring routes that LiteLLM does not have.

Its embeddings have the same form: texts go in, and numbers come out. So the router, budgets, spend
and rate limits treat a score as an embedding of one number. A deployment's `api_base` ends in the
route:

* `/score`, of vLLM, compares the conversation, as one text, with each answer.
* `/pooling`, of vLLM, applies a reward model's chat template to the conversation with the answer.
* `/rerank`, of Text Embeddings Inference, is as the first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx
from litellm.llms.custom_httpx.http_handler import get_async_httpx_client
from litellm.llms.custom_llm import CustomLLM, CustomLLMError
from litellm.types.utils import EmbeddingResponse
from litellm.types.utils import Usage as LiteLLMUsage

SCORE_PROVIDER: Final = "optillm-score"
CONVERSATION: Final = "optillm_conversation"
"""The field of a call with the messages that its texts answer."""

QUESTION: Final = "optillm_question"
"""The field with the same conversation as one text."""

_ROUTES: Final = ("score", "pooling", "rerank")
_TOKENS_HEADER: Final = "x-compute-tokens"
_BAD_REQUEST, _BAD_GATEWAY = 400, 502


def route_of(api_base: object) -> str | None:
    """Return the route that an `api_base` ends in, or None if it is none of ours."""
    last = str(api_base).rstrip("/").rsplit("/", 1)[-1]
    return last if last in _ROUTES else None


class ScoreProvider(CustomLLM):
    """LiteLLM's entry in `custom_provider_map` for `optillm-score/<model>`."""

    async def aembedding(self, *_: Any, **call: Any) -> EmbeddingResponse:
        """Return the scores of a call's texts as vectors of one number.

        Raises:
            CustomLLMError: the call is not one of a judge, or the server has failed; with its
                status.
        """
        route, fields, texts = route_of(call["api_base"]), call["optional_params"], call["input"]
        if route is None:
            raise CustomLLMError(
                _BAD_REQUEST, "the api_base must end in /score, /pooling or /rerank"
            )
        if CONVERSATION not in fields:
            raise CustomLLMError(_BAD_REQUEST, "this model scores answers, as a judge")
        response: EmbeddingResponse = call["model_response"]
        response.model, response.data, tokens = call["model"], [], 0
        for body in _bodies(route, call["model"], fields, texts):
            reply = await _post(body, call)
            tokens += _tokens(reply)
            for score in _scores(reply, route):
                vector = {"object": "embedding", "index": len(response.data), "embedding": [score]}
                response.data.append(vector)
        response.usage = LiteLLMUsage(prompt_tokens=tokens, total_tokens=tokens)
        return response


def _bodies(
    route: str, model: str, fields: Mapping[str, Any], texts: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the bodies of the requests that score `texts`."""
    question = fields[QUESTION]
    if route == "score":
        return [{"model": model, "text_1": question, "text_2": texts}]
    if route == "rerank":
        return [{"query": question, "texts": texts}]
    answers = [{"role": "assistant", "content": text} for text in texts]
    return [{"model": model, "messages": [*fields[CONVERSATION], each]} for each in answers]


@dataclass(frozen=True, slots=True)
class _Reply:
    document: Any
    headers: Mapping[str, str]


async def _post(body: Mapping[str, Any], call: Mapping[str, Any]) -> _Reply:
    client = get_async_httpx_client(llm_provider=SCORE_PROVIDER)
    key, url = call.get("api_key"), str(call["api_base"]).rstrip("/")
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    about = {"complete_input_dict": body, "api_base": url}
    call["logging_obj"].pre_call(input=call["input"], api_key="", additional_args=about)
    try:
        reply = await client.post(url, json=body, headers=headers, timeout=call.get("timeout"))
        return _Reply(reply.json(), reply.headers)
    except httpx.HTTPStatusError as exc:
        raise CustomLLMError(exc.response.status_code, exc.response.text) from None
    except ValueError:
        raise CustomLLMError(_BAD_GATEWAY, "the reply is not JSON") from None


def _scores(reply: _Reply, route: str) -> list[float]:
    """Return the scores in a reply, in the order of the texts."""
    try:
        found = reply.document if route == "rerank" else reply.document["data"]
        entries = sorted(found, key=lambda entry: entry["index"])
        if route == "pooling":
            return [_reward(entry["data"]) for entry in entries]
        return [float(entry["score"]) for entry in entries]
    except (KeyError, IndexError, TypeError, ValueError):
        raise CustomLLMError(_BAD_GATEWAY, "the reply has no scores") from None


def _reward(pooled: Sequence[Any]) -> float:
    """Return the reward in what a model pools of one conversation.

    A sequence has one number, or those of its classes, of which the last is the good one. A model
    that rewards tokens has the reward of the whole answer at the last one. One that rewards the
    steps of an answer gives the probabilities of its classes for each; an answer is as good as its
    worst step (Lightman et al. 2023, arXiv:2305.20050, appendix F, compares this with products).
    """
    if not isinstance(pooled[0], list):
        return float(pooled[-1])
    if len(pooled[0]) == 1:
        return float(pooled[-1][0])
    return min(float(step[-1]) for step in pooled)


def _tokens(reply: _Reply) -> int:
    """Return the tokens that the host has read: vLLM tells them, and TEI in a header."""
    usage = reply.document.get("usage") if isinstance(reply.document, dict) else None
    told = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    header = reply.headers.get(_TOKENS_HEADER, "")
    tokens = int(header) if told is None and header.isdecimal() else told
    return tokens if isinstance(tokens, int) and tokens > 0 else 0
