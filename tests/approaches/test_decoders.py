"""The decoder stages: what they ask of a local model, and what they say of others."""

from dataclasses import replace

import pytest

from optillm_hooks.errors import RequestRejected
from optillm_hooks.local_provider.decoding import FIELD
from optillm_hooks.local_provider.decoding.methods import SETTINGS
from optillm_hooks.local_provider.request import parse
from optillm_hooks.registry import get_approach
from optillm_hooks.types import Sampling
from tests.fakes import ScriptedLLM, chat, context, params

pytestmark = pytest.mark.anyio


class LocalLLM(ScriptedLLM):
    def supports(self, _name: str, /) -> bool:
        return True


class RemoteLLM(ScriptedLLM):
    def supports(self, _name: str, /) -> bool:
        return False


@pytest.mark.parametrize("name", sorted(SETTINGS))
async def test_a_local_model_is_told_method_and_settings_and_keeps_the_clients_fields(
    name: str,
) -> None:
    sampling = Sampling(temperature=0.5, fields={"top_k": 4})
    stage = get_approach(name)
    decoded = await stage.run(chat("Hi"), sampling, LocalLLM([]), params(name), context())
    assert replace(decoded, fields=sampling.fields) == sampling
    request = parse([{"role": "user", "content": "Hi"}], decoded.fields)
    assert isinstance(request.decoding, SETTINGS[name])
    assert request.law.top_k == 4


async def test_settings_of_the_stage_reach_the_engine() -> None:
    stage = get_approach("cot_decoding")
    given = params("cot_decoding", k=3, aggregate_paths=False)
    decoded = await stage.run(chat("Hi"), Sampling(), LocalLLM([]), given, context())
    assert decoded.fields[FIELD] == {"cot_decoding": {"k": 3, "aggregate_paths": False}}


@pytest.mark.parametrize("name", sorted(SETTINGS))
async def test_another_model_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(RequestRejected, match=f"{name} needs a local model .*: it "):
        await get_approach(name).run(chat("Hi"), Sampling(), RemoteLLM([]), params(name), context())
