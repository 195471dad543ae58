"""The provider without a proxy: with the user's own router, and with LiteLLM's SDK."""

import asyncio
import contextlib
import gc
import logging
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import litellm
import openai
import pytest
from litellm import constants
from litellm.proxy._types import UserAPIKeyAuth
from litellm.proxy.common_request_processing import _has_attribute_error_in_chain
from litellm.utils import custom_llm_setup

from optillm_hooks import registry
from optillm_hooks.errors import ProviderFailed
from optillm_hooks.gateway import admission, callback, custom_llm, hook, provider, router_llm
from optillm_hooks.gateway.caller import Caller
from optillm_hooks.gateway.model_facts import cached_model_facts
from optillm_hooks.gateway.prepared import ClientRequest, attached
from optillm_hooks.gateway.refusals import Refusals
from optillm_hooks.gateway.router_llm import RouterLLM
from optillm_hooks.pipeline.events import Models, Outcome, Request
from optillm_hooks.pipeline.run import run
from optillm_hooks.registry import Cost, NoParams, Result, approach
from optillm_hooks.testing import chat
from optillm_hooks.trace import Trace
from optillm_hooks.types import Sampling
from tests.gateway.refusals import REFUSALS, refused_models
from tests.proxy import model_group
from tests.upstream import HANG, Call, Reply, Script, Status, Upstream, always, at, differing

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("litellm_in_this_loop")]
ASKED = [{"role": "user", "content": "6 * 7?"}]


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


@pytest.fixture
def router(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Iterator[litellm.Router]:
    handler = {"provider": "optillm", "custom_handler": provider}
    monkeypatch.setattr(litellm, "custom_provider_map", [handler])
    custom_llm_setup()
    upstream.play(Script())
    made = litellm.Router(
        model_list=[
            model_group("base", upstream.url),
            _deployment("careful", "optillm/re2|cot_reflection/base"),
            _deployment("optillm/*", "optillm/*"),
            _deployment("learning", "optillm/leap/base"),
            _deployment("voted", "optillm/self_consistency(n=3)/base"),
            _deployment("reread_second", "optillm/none|re2/base"),
            *refused_models(upstream),
        ],
        num_retries=0,
    )
    provider.use(made)
    yield made
    provider.use(None)


def _deployment(name: str, model: str, **params: object) -> dict[str, Any]:
    return {"model_name": name, "litellm_params": {"model": model, **params}}


async def test_a_router_runs_what_the_alias_spells(
    router: litellm.Router, upstream: Upstream
) -> None:
    response = await router.acompletion(model="careful", messages=ASKED)
    assert [choice.message.content for choice in response.choices] == [
        "6 * 7 is 42.\nANSWER: 42",
        "6 * 7 is 42.\nANSWER: 42",
    ]
    assert response.usage.total_tokens == upstream.bill.total_tokens
    assert response.optillm["calls"] == len(upstream.calls) == 2


@pytest.mark.usefixtures("router")
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_plan_that_its_own_fallbacks_lead_back_to_ends(
    upstream: Upstream, streamed: bool
) -> None:
    ring = litellm.Router(
        model_list=[
            model_group("base", upstream.url),
            model_group("other", upstream.url),
            _deployment("first", "optillm/re2/base"),
            _deployment("second", "optillm/re2/other"),
        ],
        fallbacks=[{"base": ["second"]}, {"other": ["first"]}],
        num_retries=0,
        disable_cooldowns=True,
    )
    provider.use(ring)

    async def text() -> str:
        answer = await ring.acompletion(model="first", messages=ASKED, stream=streamed)
        if not streamed:
            return str(answer.choices[0].message.content)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])

    upstream.play(Script(fault=always(Status(500))))
    with pytest.raises(openai.APIError):
        await text()
    assert [call.body["model"] for call in upstream.calls] == ["base", "other"]
    upstream.play(Script(fault=lambda call: Status(500) if call.body["model"] == "base" else None))
    assert await text() == "6 * 7 is 42.\nANSWER: 42"


async def test_a_streamed_choice_keeps_its_own_finish_reason(
    router: litellm.Router, upstream: Upstream
) -> None:
    def second_cut(call: Call, _: int) -> Reply:
        return Reply("a b c", finish_reason="length" if call.text.count("Read the") else "stop")

    upstream.play(Script(reply=second_cut))
    chunks = await router.acompletion(model="reread_second", messages=ASKED, stream=True)
    reasons = {
        choice.index: choice.finish_reason
        async for chunk in chunks
        for choice in chunk.choices
        if choice.finish_reason is not None
    }
    assert reasons == {0: "stop", 1: "length"}


async def test_each_streamed_choice_begins_with_its_role(router: litellm.Router) -> None:
    chunks = await router.acompletion(model="careful", messages=ASKED, stream=True)
    roles = [
        choice.index
        async for chunk in chunks
        for choice in chunk.choices
        if choice.delta.role == "assistant"
    ]
    assert roles == [0, 1]


async def test_a_stream_that_its_reader_closes_is_logged_as_cancelled(
    router: litellm.Router, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "optillm_hooks")
    chunks = await router.acompletion(model="careful", messages=ASKED, stream=True)
    await anext(chunks)
    await chunks.aclose()
    [line] = [message for message in caplog.messages if "approach=" in message]
    assert line.endswith("error=cancelled")


@pytest.mark.parametrize("response", [litellm.ModelResponse(choices=[]), None])
async def test_a_response_without_choices_is_the_providers_failure(
    monkeypatch: pytest.MonkeyPatch, response: litellm.ModelResponse | None
) -> None:
    async def acompletion(**_: object) -> litellm.ModelResponse | None:
        return response

    monkeypatch.setattr(litellm, "acompletion", acompletion)
    llm = RouterLLM("base", None, Caller(), cached_model_facts(None), Trace())
    with pytest.raises(ProviderFailed, match="no choices") as caught:
        await llm.complete(chat("6 * 7?"), Sampling())
    assert caught.value.status == 502


@pytest.mark.parametrize(
    ("deadline_s", "timeout_s", "seconds"),
    [(20.0, 90.0, 20.0), (90.0, 20.0, 20.0), (None, 20.0, 20.0), (20.0, None, 20.0), (None,) * 3],
)
@pytest.mark.usefixtures("router")
async def test_the_earlier_of_deadline_and_timeout_counts(
    upstream: Upstream,
    monkeypatch: pytest.MonkeyPatch,
    deadline_s: float | None,
    timeout_s: float | None,
    seconds: float | None,
) -> None:
    ran: list[Request] = []

    async def noted(request: Request, models: Models, trace: Trace) -> Outcome:
        ran.append(request)
        return await run(request, models, trace)

    monkeypatch.setattr(custom_llm, "run", noted)
    alias = _deployment("timed", "optillm/re2/base", timeout=timeout_s)
    alias["model_info"] = {"optillm": {} if deadline_s is None else {"deadline_s": deadline_s}}
    timed = litellm.Router([alias, model_group("base", upstream.url)], num_retries=0)
    provider.use(timed)
    await timed.acompletion(model="timed", messages=ASKED)
    assert ran[0].limits.deadline_s == seconds


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_plan_ends_before_litellm_ends_its_request(
    router: litellm.Router, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, *, stream: bool
) -> None:
    ends = asyncio.get_running_loop().time() + 2.0
    litellms = ModuleType("litellm.litellm_core_utils.total_deadline")  # as of LiteLLM 1.110
    litellms.current_total_deadline = (  # type: ignore[attr-defined]
        lambda: None if stream else SimpleNamespace(_scope_at=ends)
    )
    monkeypatch.setitem(sys.modules, litellms.__name__, litellms)
    monkeypatch.setattr(constants, "LITELLM_MAX_STREAMING_DURATION_SECONDS", 2.0 if stream else 0.1)
    upstream.play(Script(reply=differing, fault=at({3: HANG}), n="refused"))
    async with asyncio.timeout(20):
        answer = await router.acompletion(model="voted", messages=ASKED, stream=stream)
        if stream:
            reports = [chunk.optillm async for chunk in answer if hasattr(chunk, "optillm")]
        else:
            reports = [answer.optillm]
    assert [report["stopped_by"] for report in reports] == ["deadline"]


def _tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


@pytest.mark.parametrize("about_n", [True, False], ids=["about n", "about a tool"])
async def test_only_a_refusal_of_several_choices_counts_for_other_requests(
    router: litellm.Router, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, *, about_n: bool
) -> None:
    learnt = Refusals()
    monkeypatch.setattr(router_llm, "REFUSALS", learnt)
    said = "Invalid 'n': only one choice" if about_n else "Invalid schema for function 'n'"

    def fault(call: Call) -> Status | None:
        return Status(400, said) if call.body.get("n", 1) > 1 or not about_n else None

    upstream.play(Script(fault=fault))
    asked = router.acompletion(model="voted", messages=ASKED, tools=[_tool("n")])
    if about_n:
        await asked
    else:
        with pytest.raises(openai.BadRequestError, match="schema"):
            await asked
    assert learnt.takes_n("base") is not about_n


@pytest.mark.parametrize("tool", ["add", "temperature"])
async def test_an_error_that_quotes_a_tool_refuses_no_field(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    learnt = Refusals()
    monkeypatch.setattr(router_llm, "REFUSALS", learnt)
    groups = [model_group(name, upstream.url) for name in ("base", "other")]
    router = litellm.Router(groups, fallbacks=[{"base": ["other"]}], num_retries=0)
    refused = Status(400, "Invalid 'temperature': unsupported")
    upstream.play(Script(fault=lambda call: refused if call.body["model"] == "base" else None))
    llm = RouterLLM("base", router, Caller(), cached_model_facts(router), Trace())
    sampling = Sampling(temperature=0.7, fields={"tools": [_tool(tool)]})
    await llm.complete(chat("6 * 7?"), sampling)
    assert learnt.takes("base", Sampling(temperature=0.7)) is (tool == "temperature")


@pytest.mark.parametrize(
    ("asked", "namespace"),
    [({}, "shared:optillm-sample-1"), ({"namespace": "mine"}, "mine:optillm-sample-1")],
    ids=["the operator's", "the client's"],
)
async def test_samples_are_cached_in_the_namespace_of_their_request(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, asked: dict[str, str], namespace: str
) -> None:
    monkeypatch.setattr(litellm, "cache", litellm.Cache(namespace="shared"))
    router = litellm.Router([model_group("base", upstream.url)], num_retries=0)
    sent: list[object] = []
    send = router.acompletion

    async def note(**request: Any) -> Any:
        sent.append(request["cache"])
        return await send(**request)

    monkeypatch.setattr(router, "acompletion", note)
    upstream.play(Script())
    llm = RouterLLM("base", router, Caller(cache=asked), cached_model_facts(router), Trace())
    for sample in (0, 1):
        await llm.complete(chat("6 * 7?"), Sampling(sample=sample))
    assert sent == [asked, {"namespace": namespace}]


async def test_a_router_streams(router: litellm.Router) -> None:
    chunks = await router.acompletion(model="careful", messages=ASKED, stream=True)
    texts = {0: "", 1: ""}
    async for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {0: "6 * 7 is 42.\nANSWER: 42", 1: "6 * 7 is 42.\nANSWER: 42"}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_proxys_request_without_its_plan_is_refused(
    router: litellm.Router, upstream: Upstream, *, stream: bool
) -> None:
    """The plan in the alias's name would ignore what the client asked for."""
    with pytest.raises(litellm.InternalServerError, match="hook must be one of"):
        await _answered(
            router, model="careful", stream=stream, proxy_server_request={"url": "/", "body": {}}
        )
    assert not upstream.calls


@pytest.mark.parametrize("end", ["answered", "failed", "refused", "closed"])
async def test_nothing_of_a_request_is_kept(
    router: litellm.Router, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(callback, "proxy_router", lambda: router)
    monkeypatch.setattr(admission, "check_access", _granted)
    upstream.play(Script(fault=always(Status(400))) if end == "failed" else Script())

    async def ask() -> None:
        body = {"model": "re2-base", "messages": ASKED, "stream": end == "closed"}
        data = await hook.async_pre_call_hook(UserAPIKeyAuth(models=[]), None, body, "acompletion")
        assert attached(data["metadata"]) is not None
        if end == "refused":  # another hook refuses the request
            return
        with contextlib.suppress(litellm.BadRequestError):
            answer = await router.acompletion(**data)
            if end == "closed":
                await anext(answer)
                await answer.aclose()

    await ask()
    for _ in range(100):
        if not requests_alive():
            return
        await asyncio.sleep(0.1)  # LiteLLM logs a request after it has answered
    pytest.fail("the request is still there")


def requests_alive() -> int:
    gc.collect()
    return sum(type(found) is ClientRequest for found in gc.get_objects())


async def _granted(_model: str, _key: UserAPIKeyAuth, _router: litellm.Router) -> None:
    """Access is LiteLLM's to refuse, and is tested on a real proxy."""


OF_KEYS = {"base_denied", "judge_denied"}
"""Refusals of a key, which a Python program does not have."""

OF_ROUTERS = {
    "base_missing", "base_alias", "judge_missing", "judge_alias",
    "unpriced_judge", "undecodable_proposer",
}  # fmt: skip
"""Refusals by a router's names, or by what its configuration says of some models."""


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", sorted(REFUSALS.keys() - OF_KEYS))
async def test_a_router_refuses_what_a_proxy_refuses(
    router: litellm.Router, upstream: Upstream, name: str, stream: bool
) -> None:
    refusal = REFUSALS[name]
    with pytest.raises(litellm.BadRequestError, match=re.escape(refusal.reason)):
        await _answered(router, model=name, stream=stream, **refusal.fields)
    assert not upstream.calls


@pytest.mark.parametrize("name", sorted(REFUSALS.keys() - OF_KEYS - OF_ROUTERS))
@pytest.mark.usefixtures("router")
async def test_the_sdk_refuses_what_a_proxy_refuses(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    provider.use(None)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("OPENAI_API_BASE", upstream.url)
    refusal = REFUSALS[name]
    with pytest.raises(litellm.BadRequestError, match=re.escape(refusal.reason)):
        await litellm.acompletion(
            model=f"optillm/{refusal.expression}/{refusal.base}",
            messages=ASKED,
            model_info={"optillm": refusal.optillm},
            **refusal.fields,
        )
    assert not upstream.calls


async def _answered(router: litellm.Router, **request: Any) -> None:
    answer = await router.acompletion(messages=ASKED, **request)
    if request["stream"]:
        async for _ in answer:
            pass


async def test_what_a_request_learnt_is_kept_for_later_ones_with_the_same_key(
    router: litellm.Router, upstream: Upstream
) -> None:
    examples = '{"worked_examples": [{"question": "2 * 21?", "answer": "42"}]}'
    asked = [{"role": "user", "content": "Q: 2 * 21?\nA: 42\n\nQ: 6 * 7?\nA:"}]
    finding = "worked examples"
    reply = lambda call, _: examples if finding in call.text else "ANSWER: 42"  # noqa: E731
    calls: list[int] = []
    for key in ("one", "one", "two"):
        upstream.play(Script(reply=reply))
        await router.acompletion(
            model="learning", messages=asked, metadata={"user_api_key": f"{key} {id(router)}"}
        )
        calls.append(len(upstream.calls))
    assert calls == [3, 2, 3]


async def test_the_upstreams_status_is_kept(router: litellm.Router, upstream: Upstream) -> None:
    upstream.play(Script(fault=always(Status(429))))
    with pytest.raises(litellm.RateLimitError):
        await router.acompletion(model="careful", messages=ASKED)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_fault_of_an_approach_is_not_blamed_on_the_request(
    router: litellm.Router, monkeypatch: pytest.MonkeyPatch, *, stream: bool
) -> None:
    """LiteLLM answers 400 where an AttributeError is anywhere in an exception's chain."""
    monkeypatch.setattr(registry, "_approaches", dict(registry._approaches))

    @approach("faulty", NoParams, cost=lambda _: Cost(1, 1))
    async def faulty(*_: object) -> Result:
        raise AttributeError("a fault of the approach")

    with pytest.raises(
        litellm.InternalServerError, match="error in the approach 'faulty'"
    ) as caught:
        await _answered(router, model="optillm/faulty/base", stream=stream)
    assert not _has_attribute_error_in_chain(caught.value)


@pytest.mark.usefixtures("router")
async def test_the_sdk_asks_the_model_itself(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.use(None)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("OPENAI_API_BASE", upstream.url)
    response = await litellm.acompletion(model="optillm/re2/openai/base", messages=ASKED)
    assert response.choices[0].message.content == "6 * 7 is 42.\nANSWER: 42"
    assert [call.body["model"] for call in upstream.calls] == ["base"]


def test_the_sdks_synchronous_function_answers_too(router: litellm.Router) -> None:
    response = router.completion(model="careful", messages=ASKED)
    assert response.choices[0].message.content == "6 * 7 is 42.\nANSWER: 42"


def test_the_synchronous_functions_stream(router: litellm.Router) -> None:
    for _ in range(2):  # each stream has an event loop of its own
        texts = {0: "", 1: ""}
        reports = []
        for chunk in router.completion(model="careful", messages=ASKED, stream=True):
            reports += [chunk.optillm] if hasattr(chunk, "optillm") else []
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        assert texts == {0: "6 * 7 is 42.\nANSWER: 42", 1: "6 * 7 is 42.\nANSWER: 42"}
        assert len(reports) == 1


@pytest.mark.usefixtures("router")
def test_the_sdk_streams_without_a_router(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.use(None)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("OPENAI_API_BASE", upstream.url)
    asked: dict[str, Any] = {"model": "optillm/re2/openai/base", "messages": ASKED}
    chunks = list(litellm.completion(**asked, stream=True))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == "6 * 7 is 42.\nANSWER: 42"
    assert chunks[-1].choices[0].finish_reason == "stop"
    upstream.play(Script(fault=always(Status(400))))
    with pytest.raises(litellm.BadRequestError):
        list(litellm.completion(**asked, stream=True))


@pytest.mark.parametrize("way", ["closed", "dropped"])
@pytest.mark.usefixtures("router")
def test_a_synchronous_stream_that_nobody_reads_cancels_its_calls(
    upstream: Upstream,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    provider.use(None)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("OPENAI_API_BASE", upstream.url)
    caplog.set_level(logging.INFO, "optillm_hooks")
    upstream.play(Script(reply=lambda *_: "word " * 100, piece_s=0.1))
    stream = litellm.completion(model="optillm/re2/openai/base", messages=ASKED, stream=True)
    next(stream)
    assert upstream.alive
    if way == "closed":
        stream.completion_stream.close()
    else:
        del stream
        gc.collect()
    upstream.wait_until_idle()
    [line] = [message for message in caplog.messages if "approach=" in message]
    assert line.endswith("error=cancelled")


PLAN = {"model": "optillm/re2/openai/base"}


async def _streamed(call: Any) -> str:
    return str([event async for event in await call])


FUNCTIONS: dict[str, Callable[[], object]] = {
    "text_completion": lambda: litellm.text_completion(**PLAN, prompt="6 * 7?"),
    "text_completion streamed": lambda: list(
        litellm.text_completion(**PLAN, prompt="6 * 7?", stream=True)
    ),
    "atext_completion": lambda: asyncio.run(litellm.atext_completion(**PLAN, prompt="6 * 7?")),
    "atext_completion streamed": lambda: asyncio.run(
        _streamed(litellm.atext_completion(**PLAN, prompt="6 * 7?", stream=True))
    ),
    "batch_completion": lambda: litellm.batch_completion(**PLAN, messages=[ASKED, ASKED]),
    "responses": lambda: litellm.responses(**PLAN, input="6 * 7?"),
    "responses streamed": lambda: list(litellm.responses(**PLAN, input="6 * 7?", stream=True)),
    "aresponses streamed": lambda: asyncio.run(
        _streamed(litellm.aresponses(**PLAN, input="6 * 7?", stream=True))
    ),
    "messages": lambda: asyncio.run(
        litellm.anthropic.messages.acreate(**PLAN, messages=ASKED, max_tokens=50)
    ),
    "messages streamed": lambda: asyncio.run(
        _streamed(
            litellm.anthropic.messages.acreate(**PLAN, messages=ASKED, max_tokens=50, stream=True)
        )
    ),
    "chunk builder": lambda: litellm.stream_chunk_builder(
        list(litellm.completion(**PLAN, messages=ASKED, stream=True))
    ),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.usefixtures("router")
def test_every_function_of_the_sdk_answers(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    provider.use(None)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("OPENAI_API_BASE", upstream.url)
    assert "ANSWER" in str(FUNCTIONS[function]())
