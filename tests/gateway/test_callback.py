"""The hook by itself, on a real router: what it leaves alone, rewrites and refuses."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import litellm
import pytest
from litellm import Router
from litellm.proxy._types import ProxyException, UserAPIKeyAuth
from litellm.utils import custom_llm_setup

from optillm_hooks.budget import Limits
from optillm_hooks.gateway import admission, callback, hook, provider
from optillm_hooks.gateway.prepared import METADATA_KEY, Prepared, attached
from optillm_hooks.gateway.reports import header_values, log_fields, log_line
from optillm_hooks.pipeline.events import Outcome, Report
from optillm_hooks.trace import CallRecord
from optillm_hooks.types import Usage

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("litellm_in_this_loop"),
    pytest.mark.filterwarnings("ignore:.*`ReadOnly`:UserWarning"),  # LiteLLM's own types
]
LIMITS = {"max_calls": 2, "max_tokens_total": 500}


def group(name: str, model: str, **info: Any) -> dict[str, Any]:
    return {
        "model_name": name,
        "litellm_params": {"model": model, "api_key": "none"},
        "model_info": info,
    }


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    before = litellm.custom_provider_map
    litellm.custom_provider_map = [{"provider": "optillm", "custom_handler": provider}]
    custom_llm_setup()
    yield Router(
        model_list=[
            group("base", "openai/gpt-4o-mini"),
            group("careful", "optillm/re2/base", optillm=LIMITS),
            group("unpriced", "openai/unknown"),
            group("goes_on", "openai/gpt-4o-mini", optillm={"continues_prefix": True}),
            group("optillm/*", "optillm/*"),
        ]
    )
    litellm.custom_provider_map = before


@pytest.fixture(autouse=True)
def _in_a_proxy(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callback, "proxy_router", lambda: router)
    monkeypatch.setattr(admission, "check_access", _granted)


async def _granted(_model: str, _key: UserAPIKeyAuth, _router: Router) -> None:
    """Access is LiteLLM's to refuse, and is tested on a real proxy."""


async def called(
    model: str, call_type: str = "acompletion", **fields: Any
) -> tuple[dict[str, Any], Prepared | None]:
    data = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
    found = await hook.async_pre_call_hook(UserAPIKeyAuth(models=[]), None, data, call_type)
    client = attached(found.get("metadata", {}))
    return found, None if client is None else client.prepared


@pytest.mark.parametrize("number", [-0.04, -7, float("nan"), 1e30, 10**400])
async def test_nothing_absurd_is_booked(number: float) -> None:
    booked = {"response_cost": number, "completion_tokens": 5, "model": "base"}
    kwargs = {**booked, "standard_logging_object": dict(booked)}
    found, result = await hook.async_logging_hook(kwargs, "reply", "acompletion")
    right = {"response_cost": 0, "completion_tokens": 5, "model": "base"}
    assert found == {**right, "standard_logging_object": right}
    assert result == "reply"


@pytest.mark.parametrize("call_type", ["acompletion", "anthropic_messages", "aresponses"])
async def test_a_request_without_an_approach_passes_untouched(call_type: str) -> None:
    found, prepared = await called("base", call_type, user="u", temperature=0)
    assert repr(found.pop("metadata")) == "{'optillm_request': <optillm request>}"
    found.pop("litellm_metadata", None)  # the same, on the responses route
    assert found == {
        "model": "base",
        "messages": [{"role": "user", "content": "hi"}],
        "user": "u",
        "temperature": 0,
    }
    assert prepared is None


@pytest.mark.parametrize("model", ["base", "none-base", "moa-base", "careful"])
async def test_settings_that_are_not_valid_do_not_touch_plain_requests(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(litellm, "optillm_settings", {"max_choice": 3}, raising=False)
    if model == "base":
        assert (await called(model))[0]["model"] == "base"
    else:
        with pytest.raises(ProxyException, match=r"optillm_settings\.max_choice"):
            await called(model)


UNSERVED = ["aembedding", "arerank", "moderation", "agenerate_content", "acreate_batch"]


@pytest.mark.parametrize("call_type", UNSERVED)
@pytest.mark.parametrize("model", ["careful", "re2-base", "re2|moa-base", "optillm/re2/base"])
async def test_a_route_that_makes_no_chat_completions_refuses_an_approach(
    call_type: str, model: str
) -> None:
    with pytest.raises(ProxyException, match="call its base model") as refused:
        await called(model, call_type)
    assert (refused.value.code, refused.value.param) == ("400", "model")


@pytest.mark.parametrize(
    ("model", "call_type"),
    [*(("base", call_type) for call_type in UNSERVED), ("moa", "arerank"), ("careful", "mcp_call")],
)
async def test_other_kinds_of_calls_pass_untouched(model: str, call_type: str) -> None:
    found, _ = await called(model, call_type)
    assert found["model"] == model
    assert "metadata" not in found


@pytest.mark.parametrize(
    ("model", "fields"),
    [("none-base", {}), ("base", {"optillm_approach": "none"}), ("optillm/none/base", {})],
)
async def test_none_becomes_the_base_itself(model: str, fields: dict[str, Any]) -> None:
    found, prepared = await called(model, **fields)
    assert (found["model"], prepared) == ("base", None)
    assert "optillm_approach" not in found


async def test_limits_of_the_clients_hold_for_none_too() -> None:
    found, prepared = await called("none-base", optillm_limits={"max_tokens_total": 50})
    assert found["model"] == "optillm/none"
    assert prepared is not None
    assert prepared.limits.max_tokens_total == 50
    assert (await called("none-base", optillm_limits={}))[0]["model"] == "base"


async def test_none_on_an_alias_keeps_the_aliass_limits() -> None:
    found, prepared = await called("careful", optillm_approach="none")
    assert found["model"] == "careful"
    assert prepared is not None
    assert prepared.plan.passes_through
    assert (prepared.limits.max_calls, prepared.limits.max_tokens_total) == (2, 500)


async def test_a_plan_travels_under_a_short_name_without_a_comma() -> None:
    found, prepared = await called(
        "re2(think=true)&moa(proposers=2)-base", optillm_params={"moa": {"layers": 2}}
    )
    assert found["model"] == "optillm/re2&moa"
    assert found["num_retries"] == 0
    assert {"reasoning_effort", "thinking"} <= set(found["allowed_openai_params"])
    assert prepared is not None
    assert (prepared.base, prepared.requested) == ("base", "re2(think=true)&moa(proposers=2)-base")


@pytest.mark.parametrize("bucket", ["metadata", "litellm_metadata"])
async def test_a_copy_of_the_metadata_has_the_same_request(bucket: str) -> None:
    sent: dict[str, Any] = {"user_api_key_hash": "h", METADATA_KEY: "forged"}
    fields: dict[str, Any] = {bucket: sent}
    found, _ = await called("re2-base", **fields)
    client = attached(found[bucket])
    assert client is not None
    assert attached(copy.deepcopy(found)[bucket]) is client
    assert attached(copy.copy(found[bucket])) is client
    assert attached({METADATA_KEY: "forged"}) is None


@pytest.mark.parametrize(
    ("model", "fields", "param"),
    [
        ("nope-base", {}, "model"),
        ("re2-base", {"n": 0}, "n"),
        ("re2-base", {"n": "2"}, "n"),
        ("re2-base", {"n": True}, "n"),
        ("re2-base", {"n": 65}, "n"),
        ("re2-base", {"seed": "x"}, "seed"),
        ("re2-base", {"stop": 5}, "stop"),
        ("re2-base", {"messages": [{"role": ["user"]}]}, "messages[0].role"),
        ("re2-base", {"messages": None}, "messages"),
        ("moa(models=[nobody])-base", {}, "optillm_params"),
        ("re2-unpriced", {"optillm_limits": {"max_cost_usd": 1}}, "model"),
    ],
    ids=str,
)
async def test_what_cannot_be_served_is_a_400_before_anything_runs(
    model: str, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(ProxyException) as caught:
        await called(model, **fields)
    assert (caught.value.code, caught.value.param) == ("400", param)


async def test_models_that_have_answered_before_a_decoder_need_not_support_it() -> None:
    _, prepared = await called("moa(models=[base])&cot_decoding-goes_on")
    assert prepared is not None
    with pytest.raises(ProxyException, match="'base' is not"):
        await called("cot_decoding&moa(models=[base])-goes_on")


async def test_usage_that_the_client_did_not_ask_for_is_requested_and_hidden() -> None:
    found, _ = await called("none-base", stream=True)
    assert found["stream_options"] == {"include_usage": True}
    assert found["_litellm_strip_stream_usage"] is True
    found, _ = await called("none-base", stream=True, stream_options={"include_usage": True})
    assert "_litellm_strip_stream_usage" not in found


async def test_headers_and_the_log_line_tell_the_report() -> None:
    _, prepared = await called("re2-base", optillm_limits={"max_calls": 9})
    assert prepared is not None
    usage = Usage(calls=1, prompt_tokens=5, completion_tokens=2, cost_usd=0.25)
    for run in range(3):
        prepared.trace.record(
            CallRecord(
                stage="re2",
                run=run,
                model="base",
                purpose="answer",
                depth=1 + run // 2,
                started_s=0.0,
                seconds=0.5,
                outcome="ok",
                usage=usage,
            )
        )
    report = Report(
        approach="re2",
        base="base",
        calls=3,
        calls_saved=0,
        depth=2,
        usage=usage + usage + usage,
        seconds=1.5,
        stopped_by="deadline",
        degraded=("provider_failed", "empty_completion"),
        choices=("re2",),
        notes=(),
        trace=(),
    )
    prepared.outcome, prepared.trace.stopped_by = Outcome((), report), "deadline"
    assert header_values(prepared, answered=True) == {
        "x-optillm-approach": "re2",
        "x-optillm-base-model": "base",
        "x-optillm-estimated-calls": "1",
        "x-optillm-estimated-cost": "0.00024015",  # a prompt of one token, 400 of a reply
        "x-optillm-max-calls": "9",
        "x-optillm-calls": "3",
        "x-optillm-depth": "2",
        "x-optillm-cost-usd": "0.75000000",
        "x-optillm-seconds": "1.500",
        "x-optillm-stopped-by": "deadline",
        "x-optillm-degraded": "provider_failed,empty_completion",
    }
    assert log_line(log_fields(prepared, seconds=2.0, error="")) == (
        "call_id=- approach=re2 base=base calls=3 depth=2 seconds=2.000 cost_usd=0.75000000 "
        "stopped_by=deadline degraded=provider_failed,empty_completion error=-"
    )


@pytest.mark.parametrize("base", ["x\r\nset-cookie: a=b", "x\x00", "modèle", "x\u2028y", "\ud800"])
async def test_headers_hold_nothing_but_printable_ascii(base: str) -> None:
    _, prepared = await called("re2-base")
    assert prepared is not None
    limits = Limits(deadline_s=1.5)
    prepared.selection = replace(prepared.selection, base=base, limits=limits)
    headers = header_values(prepared, answered=False)
    assert headers["x-optillm-deadline-s"] == "1.5"
    assert all(32 <= ord(char) < 127 for value in headers.values() for char in value)


@pytest.mark.parametrize("model", ["careful", "re2-base"])
async def test_an_adapter_is_refused_on_a_model_that_has_none(model: str) -> None:
    with pytest.raises(ProxyException, match="active_adapter: only a local model"):
        await called(model, active_adapter="polite")
    assert (await called("base", active_adapter="polite"))[0]["active_adapter"] == "polite"


async def test_none_is_served_as_the_base_model_whatever_its_fields() -> None:
    fields = {"prompt": ["one", "two"], "echo": True}
    found, _ = await called("none-base", "atext_completion", **fields)
    assert (found["model"], found["echo"]) == ("base", True)
