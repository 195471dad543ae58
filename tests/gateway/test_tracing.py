"""Spans of requests: their tree, the cost on each, in LiteLLM's older and newer tracing."""

import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import litellm
import openai
import pytest
from litellm.integrations.opentelemetry import OpenTelemetry, OpenTelemetryConfig
from litellm.integrations.otel.logger import build_otel_v2_logger
from litellm.integrations.otel.model.config import OpenTelemetryV2Config, is_otel_v2_enabled
from litellm.integrations.otel.plumbing.context import set_request_root_span
from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER
from litellm.utils import custom_llm_setup
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from optillm_hooks.gateway import provider
from optillm_hooks.gateway.caller import span_metadata
from tests.proxy import alias, model_group
from tests.upstream import Script, Status, Upstream, always, at, differing

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("litellm_in_this_loop")]
SECRET = "the-question-nobody-may-read"
ASKED = [{"role": "user", "content": f"{SECRET}: 6 * 7?"}]
CALLBACKS = (
    "callbacks", "service_callback", "input_callback", "success_callback", "failure_callback",
    "_async_input_callback", "_async_success_callback", "_async_failure_callback",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Version:
    """One of LiteLLM's two implementations of the callback `otel`."""

    name: str
    call: str
    """The name of its span of a call of the model "base"."""

    cost: str
    """The attribute with its cost."""

    make: Callable[[TracerProvider], Any]


V1 = Version(
    "v1",
    "litellm_request",
    "gen_ai.cost.total_cost",
    lambda to: OpenTelemetry(OpenTelemetryConfig(), tracer_provider=to),
)
V2 = Version(
    "v2",
    "chat base",
    "litellm.cost.total",
    lambda to: build_otel_v2_logger(OpenTelemetryV2Config(), tracer_provider=to),
)


class Traced:
    """A router whose calls are traced below the span "server", as the proxy's are."""

    def __init__(self, version: Version, router: litellm.Router) -> None:
        self.version = version
        self._router = router
        self._ended = InMemorySpanExporter()
        to = TracerProvider()
        to.add_span_processor(SimpleSpanProcessor(self._ended))
        self._tracer = to.get_tracer("test")
        litellm.callbacks.append(version.make(to))

    async def ask(self, **request: object) -> Any:
        with self._tracer.start_as_current_span("server") as server:
            set_request_root_span(server)
            metadata = {"litellm_parent_otel_span": server}
            return await self._router.acompletion(**request, metadata=metadata)

    async def spans(self) -> Sequence[ReadableSpan]:
        """Return the spans that have ended."""
        await GLOBAL_LOGGING_WORKER.flush()
        return self._ended.get_finished_spans()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


@pytest.fixture
def router(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Iterator[litellm.Router]:
    handler = {"provider": "optillm", "custom_handler": provider}
    monkeypatch.setattr(litellm, "custom_provider_map", [handler])
    custom_llm_setup()
    upstream.play(Script(reply=differing))
    expressions = {
        "rated": "bon(n=2)",
        "nested": "json&re2",
        "chains": "re2|cot_reflection",
        "single": "re2",
        "critical": "moa",
    }
    models = [alias(name, text) for name, text in expressions.items()]
    made = litellm.Router([model_group("base", upstream.url), *models], num_retries=0)
    provider.use(made)
    yield made
    provider.use(None)


@pytest.fixture(params=[V1, V2], ids=lambda version: version.name)
async def traced(
    request: pytest.FixtureRequest, router: litellm.Router, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Traced]:
    proxy = ModuleType("litellm.proxy.proxy_server")
    monkeypatch.setattr("litellm.proxy.proxy_server", proxy, raising=False)
    monkeypatch.setitem(sys.modules, proxy.__name__, proxy)
    monkeypatch.setattr(proxy, "llm_router", router, raising=False)
    for name in CALLBACKS:
        monkeypatch.setattr(litellm, name, [])
    if request.param is V2:
        monkeypatch.setenv("LITELLM_OTEL_V2", "true")
    is_otel_v2_enabled.cache_clear()
    yield Traced(request.param, router)
    is_otel_v2_enabled.cache_clear()


def named(spans: Sequence[ReadableSpan], name: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name == name]


def below(span: ReadableSpan, spans: Sequence[ReadableSpan]) -> list[str]:
    """Return the names of the spans directly below `span`, without those of LiteLLM's internals."""
    internal = ("raw_gen_ai_request", "self", "router", "route base")
    assert span.context is not None
    return sorted(
        each.name
        for each in spans
        if each.parent is not None
        and each.parent.span_id == span.context.span_id
        and each.name not in internal
    )


def told(span: ReadableSpan | Event) -> dict[str, Any]:
    return dict(span.attributes or {})


async def ask(traced: Traced, model: str, *, stream: bool = False) -> dict[str, Any]:
    """Return the report of an answer."""
    answer = await traced.ask(model=model, messages=ASKED, stream=stream)
    if not stream:
        return dict(answer.optillm)
    [report] = [dict(c.optillm) async for c in answer if getattr(c, "optillm", None) is not None]
    return report


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_the_calls_are_below_their_stage_and_cost_what_the_request_costs(
    traced: Traced, stream: bool
) -> None:
    report = await ask(traced, "rated", stream=stream)
    spans = await traced.spans()
    [server], [stage] = named(spans, "server"), named(spans, "bon")
    [workflow] = named(spans, "invoke_workflow bon")
    calls = named(spans, traced.version.call)
    assert workflow.name in below(server, spans)
    assert below(workflow, spans) == ["bon"]
    assert below(stage, spans) == [traced.version.call] * 3
    assert told(workflow) == {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": "bon",
        "gen_ai.invoke_workflow.inference_calls": report["calls"],
        "optillm.base_model": "base",
        "optillm.call_id": told(workflow)["optillm.call_id"],
        "optillm.stream": stream,
        "optillm.cost_usd": pytest.approx(report["cost_usd"]),
        "optillm.depth": report["depth"],
        "optillm.calls_saved": 0,
    }
    costs = [cost for call in calls if (cost := told(call).get(traced.version.cost))]
    assert sum(costs) == pytest.approx(report["cost_usd"])
    assert len({*costs}) == len(costs) == 3
    facts = [told(each) for each in stage.events if each.name == "optillm.call"]
    assert [each["optillm.purpose"] for each in facts] == ["answer", "judge", "judge"]
    assert sum(each["optillm.cost_usd"] for each in facts) == pytest.approx(report["cost_usd"])
    assert [event.name for event in workflow.events] == ["optillm.first_piece"] * stream
    assert SECRET not in f"{workflow.to_json()} {stage.to_json()}"


async def test_stages_lie_in_each_other_as_in_the_plan(traced: Traced) -> None:
    await ask(traced, "nested")
    spans = await traced.spans()
    [workflow], [outer] = named(spans, "invoke_workflow json&re2"), named(spans, "json")
    assert below(workflow, spans) == ["final_call", "json"]
    assert below(outer, spans) == ["re2"]


async def test_a_stage_tells_which_choice_it_works_at(traced: Traced) -> None:
    await ask(traced, "chains")
    spans = await traced.spans()
    finals = [told(span) for span in named(spans, "final_call")]
    told_of = sorted((each["optillm.stage"], each["optillm.choice"]) for each in finals)
    assert told_of == [("cot_reflection", 1), ("re2", 0)]


async def test_a_plan_that_fails(traced: Traced, upstream: Upstream) -> None:
    upstream.play(Script(fault=always(Status(500, f"I say no to {SECRET}"))))
    with pytest.raises(openai.APIError):
        await ask(traced, "single")
    spans = await traced.spans()
    [workflow], [stage] = named(spans, "invoke_workflow re2"), named(spans, "final_call")
    for span in (workflow, stage):
        assert told(span)["error.type"] == "provider_failed"
        assert not span.status.is_ok
        assert SECRET not in span.to_json()
    assert told(workflow)["gen_ai.invoke_workflow.inference_calls"] == 1
    assert below(stage, spans) == [traced.version.call]


async def test_a_step_that_is_lost(traced: Traced, upstream: Upstream) -> None:
    upstream.play(Script(reply=differing, fault=at({1: Status(500)})))
    report = await ask(traced, "critical")
    assert report["degraded"] == ["critiques:1/1"]
    [workflow] = named(await traced.spans(), "invoke_workflow moa")
    assert told(workflow)["optillm.degraded"] == ("critiques:1/1",)
    assert workflow.status.is_unset


async def test_a_stream_that_is_closed_in_its_middle_has_not_failed(
    traced: Traced, upstream: Upstream
) -> None:
    upstream.play(Script(reply=lambda *_: "word " * 1000, piece_s=0.01))
    answer = await traced.ask(model="single", messages=ASKED, stream=True)
    async with aclosing(answer) as chunks:
        async for chunk in chunks:
            if "word" in str(chunk):
                break
    spans = await traced.spans()
    [workflow], [stage] = named(spans, "invoke_workflow re2"), named(spans, "final_call")
    for span in (workflow, stage):
        assert told(span)["error.type"] == "cancelled"
        assert span.status.is_unset


async def test_without_litellms_callback_nothing_is_traced(router: litellm.Router) -> None:
    answer = await router.acompletion(model="rated", messages=ASKED)
    assert answer.optillm["calls"] == 3
    assert span_metadata() == {}
