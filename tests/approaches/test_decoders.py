"""The decoder stages: what they ask of a local model, and what they say of others."""

from dataclasses import replace

import pytest

from optillm_hooks.decoding.field import FIELD
from optillm_hooks.errors import RequestRejected
from optillm_hooks.local_provider.decoding.methods import METHODS
from optillm_hooks.local_provider.request import parse_request
from optillm_hooks.registry import get_approach
from optillm_hooks.testing import ScriptedLLM, chat, context, params
from optillm_hooks.types import Json, Sampling

pytestmark = pytest.mark.anyio
LOCAL = ScriptedLLM([], fields=[FIELD])


async def decoded(name: str, sampling: Sampling, **given: object) -> dict[str, Json]:
    """Return the settings with which a local model is told to decode."""
    stage = get_approach(name)
    told = await stage.run(chat("Hi"), sampling, LOCAL, params(name, **given), context())
    settings = told.fields[FIELD][name]
    assert isinstance(settings, dict)
    return settings


@pytest.mark.parametrize("name", sorted(METHODS))
async def test_a_local_model_is_told_method_and_settings_and_keeps_the_clients_fields(
    name: str,
) -> None:
    sampling = Sampling(temperature=0.5, fields={"top_k": 4})
    stage = get_approach(name)
    told = await stage.run(chat("Hi"), sampling, LOCAL, params(name), context())
    assert replace(told, fields=sampling.fields) == sampling
    request = parse_request([{"role": "user", "content": "Hi"}], told.fields)
    assert isinstance(request.decoding, METHODS[name].settings)
    assert request.sampling.top_k == 4


async def test_settings_of_the_stage_reach_the_engine() -> None:
    papers = {"first_token_exponent": 0.0, "every_mention": False, "aggregate_paths": False}
    found = await decoded("cot_decoding", Sampling(), k=3, num_beams=1, **papers)
    assert found == {"k": 3, **papers, "branch_temperature": 0.0}


@pytest.mark.parametrize(
    ("asked", "given", "temperature"),
    [(None, {}, 0.0), (0.9, {}, 0.9), (0.9, {"branch_temperature": 0.2}, 0.2)],
    ids=["alone", "within an approach that samples", "as the request says"],
)
async def test_branches_are_greedy_unless_somebody_wants_several_different_replies(
    asked: float | None, given: dict[str, float], temperature: float
) -> None:
    found = await decoded("cot_decoding", Sampling(temperature=asked), **given)
    assert found["branch_temperature"] == temperature


@pytest.mark.parametrize(("asked", "most"), [(None, 9), (5, 5), (50, 9)])
async def test_a_trace_is_no_longer_than_the_method_or_the_approach_says(
    asked: int | None, most: int
) -> None:
    stage, given = get_approach("deepconf"), params("deepconf", max_tokens_per_trace=9)
    told = await stage.run(chat("Hi"), Sampling(max_tokens=asked), LOCAL, given, context())
    assert told.max_tokens == most


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("cot_decoding", (), r"local model .* or a deployment .*continues_prefix: true.*: it ch"),
        ("thinkdeeper", (), r"local model .* or a deployment .*continues_prefix: true.*: it wr"),
        ("autothink", (), r"local model .* or a deployment .*continues_prefix: true.*: it wr"),
        ("deepconf", (), r"local model .* top_logprobs, which 'base' is not: confidence is comp"),
        (
            "entropy_decoding",
            ("continue_final_message", "top_logprobs"),
            r"local model .*: entropy and varentropy need the whole distribution",
        ),
    ],
)
async def test_a_model_that_cannot_is_refused_with_the_reason_and_never_asked(
    name: str, fields: tuple[str, ...], message: str
) -> None:
    remote = ScriptedLLM([], fields=fields)
    with pytest.raises(RequestRejected, match=f"{name} needs a {message}"):
        await get_approach(name).run(chat("Hi"), Sampling(), remote, params(name), context())


async def test_steering_a_remote_model_is_refused_with_the_reason() -> None:
    remote = ScriptedLLM([], fields=["continue_final_message"])
    given = params("autothink", pattern_strengths={"careful": 0.5})
    with pytest.raises(RequestRejected, match=r"pattern_strengths needs a local model .*layers"):
        await get_approach("autothink").run(chat("Hi"), Sampling(), remote, given, context())


async def test_a_steering_strength_beyond_the_state_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="between -1 and 1"):
        params("autothink", pattern_strengths={"careful": 1.5})
