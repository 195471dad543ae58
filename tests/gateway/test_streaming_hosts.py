"""Hosts that give a model's replies as streams only: its approaches stream what they ask for."""

from collections.abc import Iterator
from typing import Any, Final

import litellm
import pytest
from litellm.utils import custom_llm_setup

from optillm_hooks.gateway import provider
from optillm_hooks.gateway.refusals import REFUSALS
from tests.upstream import Call, Fault, Reply, Script, Status, Upstream

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("litellm_in_this_loop")]

ASKED: Final = [{"role": "user", "content": "6 * 7?"}]
REFUSALS_OF_HOSTS: Final = [
    "parameter.enable_thinking must be set to false for non-streaming calls",
    "enable thinking can not be support when `stream=False`.",
    "This model only support stream mode, please enable the stream parameter to access the model.",
]


@pytest.fixture
def router(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Iterator[litellm.Router]:
    handler = {"provider": "optillm", "custom_handler": provider}
    monkeypatch.setattr(litellm, "custom_provider_map", [handler])
    monkeypatch.setattr(REFUSALS, "_of", type(REFUSALS._of)())
    custom_llm_setup()
    made = litellm.Router(
        model_list=[
            _deployment("plain", "openai/m", upstream.url),
            _deployment("best", "optillm/bon(n=2)/plain"),
        ],
        num_retries=0,
    )
    provider.use(made)
    yield made
    provider.use(None)


def _deployment(name: str, model: str, url: str | None = None) -> dict[str, Any]:
    given = {} if url is None else {"api_base": url, "api_key": "key", "max_retries": 0}
    return {"model_name": name, "litellm_params": {"model": model, **given}}


@pytest.mark.parametrize("message", REFUSALS_OF_HOSTS)
async def test_inner_calls_are_streamed(
    router: litellm.Router, upstream: Upstream, message: str
) -> None:
    def only_streams(call: Call) -> Fault | None:
        return None if call.streamed else Status(400, message)

    def reply(call: Call, _choice: int) -> Reply:
        return Reply(f"It is 42{call.index}.\nRATING: {call.index % 10}", "Hm.")

    upstream.play(Script(reply=reply, fault=only_streams))
    for _ in range(2):
        answer: Any = await router.acompletion(model="best", messages=ASKED)
        assert "42" in answer.choices[0].message.content
        assert answer.choices[0].message.reasoning_content == "Hm."
        assert answer.optillm["degraded"] == []
    refused = [call for call in upstream.calls if call.outcome == "failed"]
    assert len(refused) == 1
    assert answer.usage.prompt_tokens == sum(
        call.told.prompt_tokens for call in upstream.calls[-4:] if call.told is not None
    )
