"""The hook by itself, on a real router: what it leaves alone, rewrites and refuses."""

from collections.abc import Iterator
from typing import Any

import litellm
import pytest
from litellm import Router
from litellm.proxy._types import ProxyException, UserAPIKeyAuth
from litellm.utils import custom_llm_setup

from optillm_hooks.budget import Limits
from optillm_hooks.gateway import admission, callback, hook, provider
from optillm_hooks.gateway.prepared import Prepared, current
from optillm_hooks.gateway.reports import header_values

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
    return found, current.get()


@pytest.mark.parametrize("call_type", ["acompletion", "anthropic_messages", "aresponses"])
async def test_a_request_without_an_approach_passes_untouched(call_type: str) -> None:
    found, prepared = await called("base", call_type, user="u", temperature=0)
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


async def test_a_call_that_is_not_ours_leaves_the_request_it_belongs_to() -> None:
    _, prepared = await called("re2-base")
    assert prepared is not None
    assert (await called("base", "mcp_call"))[1] is prepared


@pytest.mark.parametrize("call_type", ["aembedding", "arerank", "mcp_call", ""])
async def test_other_kinds_of_calls_pass_untouched(call_type: str) -> None:
    current.set(None)
    found, prepared = await called("re2-base", call_type)
    assert (found["model"], prepared) == ("re2-base", None)


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


async def test_nothing_of_one_request_is_left_for_the_next() -> None:
    _, first = await called("re2-base")
    assert first is not None
    _, second = await called("base")
    assert second is None


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
    assert current.get() is None


@pytest.mark.parametrize("base", ["x\r\nset-cookie: a=b", "x\x00", "modèle", "x\u2028y", "\ud800"])
async def test_headers_hold_nothing_but_printable_ascii(base: str) -> None:
    _, prepared = await called("re2-base")
    assert prepared is not None
    prepared.base = base
    prepared.limits = Limits(deadline_s=1.5)
    headers = header_values(prepared, answered=False)
    assert headers["x-optillm-deadline-s"] == "1.5"
    assert all(32 <= ord(char) < 127 for value in headers.values() for char in value)
