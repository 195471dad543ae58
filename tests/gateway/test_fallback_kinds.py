"""Errors of a kind for which a router has fallbacks of their own, on aliases."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import pytest

from tests.gateway.test_faults import ask
from tests.proxy import Proxy, alias, hooked_config, model_group
from tests.upstream import Call, Fault, Reply, Script, Status, Upstream


def error(message: str, code: str | None = None, **fields: object) -> Status:
    body = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return Status(400, body={"error": {**body, **fields}})


TOO_LONG: Final[Mapping[str, Status]] = {
    "OpenAI": error(
        "This model's maximum context length is 100 tokens. However, your messages resulted in 900 "
        "tokens. Please reduce the length of the messages.",
        "context_length_exceeded",
    ),
    "OpenAI, newer": error(
        "Your input exceeds the context window of this model. Please adjust your input and try "
        "again.",
        "context_length_exceeded",
    ),
    "vLLM": error(
        "This model's maximum context length is 100 tokens. However, you requested 900 tokens (800 "
        "in the messages, 100 in the completion). Please reduce the length of the messages or "
        "completion."
    ),
    "Mistral": error(
        "Prompt contains 900 tokens, too large for model with 100 maximum context length"
    ),
    "Groq": error(
        "Please reduce the length of the messages or completion.", "context_length_exceeded"
    ),
    "xAI": error("This model's maximum prompt length is 100 but the request contains 900 tokens."),
    "DeepSeek": error(
        "This model's maximum context length is 100 tokens. However, you requested 900."
    ),
    "Together": error("`inputs` tokens + `max_new_tokens` must be <= 100"),
}
NOT_ALLOWED: Final[Mapping[str, Status]] = {
    "OpenAI": error(
        "Your request was rejected as a result of our safety system.", "content_policy_violation"
    ),
    "Azure": error(
        "The response was filtered due to the prompt triggering Azure OpenAI's content management "
        "policy. Please modify your prompt and retry.",
        "content_filter",
        innererror={
            "code": "ResponsibleAIPolicyViolation",
            "content_filter_result": {"hate": {"filtered": True, "severity": "high"}},
        },
    ),
    "usage policy": error(
        "Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
        "invalid_prompt",
    ),
}
REJECTIONS: Final = [
    *(pytest.param("long", fault, id=f"too long, {host}") for host, fault in TOO_LONG.items()),
    *(
        pytest.param("barred", fault, id=f"not allowed, {host}")
        for host, fault in NOT_ALLOWED.items()
    ),
]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    kinds = {"long": "context_window_fallbacks", "barred": "content_policy_fallbacks"}
    ways = {"single": "re2", "voted": "self_consistency(n=3)", "judged": "bon", "fused": "moa"}
    config = hooked_config(
        [
            model_group("base", upstream.url),
            model_group("roomy", upstream.url),
            *(
                alias(f"{way}-{kind}", plan, on_error="plain")
                for kind in kinds
                for way, plan in ways.items()
            ),
        ],
        **{
            setting: [{f"{way}-{kind}": ["roomy"]} for way in ways]
            for kind, setting in kinds.items()
        },
    )
    with Proxy(config, tmp_path_factory.mktemp("proxy"), ledger=False) as running:
        yield running


def models_called(upstream: Upstream) -> list[str]:
    return [str(call.body["model"]) for call in upstream.calls]


def only_base(fault: Fault) -> Any:
    return lambda call: fault if call.body["model"] == "base" else None


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("kind", "fault"), REJECTIONS)
def test_a_rejected_prompt_goes_to_the_fallback_of_its_kind(
    proxy: Proxy, upstream: Upstream, kind: str, fault: Status, stream: bool
) -> None:
    upstream.play(Script(fault=only_base(fault)))
    answer = ask(proxy, f"single-{kind}", stream=stream)
    assert answer.status_code == 200, answer.text
    assert "42" in answer.text
    assert models_called(upstream) == ["base", "roomy"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("kind", ["long", "barred"])
@pytest.mark.parametrize("way", ["single", "voted", "judged", "fused"])
def test_every_approach_sends_it_once(
    proxy: Proxy, upstream: Upstream, way: str, kind: str, stream: bool
) -> None:
    fault = (TOO_LONG if kind == "long" else NOT_ALLOWED)["OpenAI"]
    upstream.play(Script(fault=only_base(fault)))
    answer = ask(proxy, f"{way}-{kind}", stream=stream)
    assert answer.status_code == 200, answer.text
    called = models_called(upstream)
    assert called.count("roomy") == 1
    assert called.count("base") <= (3 if way == "fused" else 1)  # proposals are concurrent calls


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_without_a_fallback_the_client_gets_the_providers_error(
    proxy: Proxy, upstream: Upstream, stream: bool
) -> None:
    upstream.play(Script(fault=lambda _: TOO_LONG["OpenAI"]))
    answer = ask(proxy, "self_consistency-base", stream=stream)
    assert answer.status_code == 400
    assert "maximum context length" in answer.json()["error"]["message"]
    assert "ContextWindowExceededError" in answer.json()["error"]["message"]
    assert models_called(upstream) == ["base"]


def test_a_filtered_answer_goes_to_the_fallback_too(proxy: Proxy, upstream: Upstream) -> None:
    def filtered(call: Call, _: int) -> Reply:
        return Reply("", finish_reason="content_filter" if call.body["model"] == "base" else None)

    upstream.play(Script(reply=filtered))
    assert ask(proxy, "voted-barred").status_code == 200
    assert models_called(upstream) == ["base", "roomy"]
