"""Every approach on the kinds of models of today, each of which refuses other sampling fields.

The scripted provider refuses what OpenAI and Anthropic refuse, in their wire formats.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from optillm_hooks.registry import Approach, all_approaches, get_approach
from tests.fakes import filled_form
from tests.gateway.services import PAGES, with_services
from tests.gateway.test_max_tokens import NAMES, check_nothing_is_cut_off
from tests.proxy import Proxy, hooked_config, model_group
from tests.test_catalogue import PROGRAM, cost, is_bound
from tests.upstream import Call, Reply, Script, Status, Upstream, differing
from tests.web_world import WebWorld

APPROACHES = [
    found
    for found in all_approaches()
    if found.kind != "decoder" and "tools" not in found.needs  # servers of tools have own tests
]
DECODERS = [found for found in all_approaches() if found.kind == "decoder"]
VERDICT = "RATING: 1\nBEST: 1\nVERDICT: CORRECT"
SMT = "(declare-const x Int)\n(assert (= x (* 6 7)))\n(check-sat)\n(get-value (x))"
QUESTION = {"role": "user", "content": "What is 6 times 7?"}


class Kind(NamedTuple):
    """A model, and what a client sends to it besides the question."""

    model: str
    fields: dict[str, Any] = {}  # noqa: RUF012 (a NamedTuple's default, never changed)


THINKING = {"type": "enabled", "budget_tokens": 2048}
KINDS = {
    "plain": Kind("gpt-4o-mini"),
    "no temperature": Kind("gpt-5-mini"),
    "no temperature with effort": Kind("gpt-5.1", {"reasoning_effort": "low", "max_tokens": 4500}),
    "no sampling fields": Kind("opus", {"reasoning_effort": "low"}),
    "temperature or top_p": Kind("sonnet", {"top_p": 0.9}),
    "no temperature while it thinks": Kind("sonnet", {"reasoning_effort": "high"}),
    "a budget, and max_tokens": Kind("sonnet", {"thinking": THINKING, "max_tokens": 4500}),
}
NOT_REASONING = (KINDS["plain"], KINDS["temperature or top_p"])
SAVED = {"cepo": 9, "mars": 6, "plansearch": 3}
"""Calls for plans and strategies, which a model that reasons makes for itself."""

MORE_KINDS = {
    **KINDS,
    "o4-mini": Kind("o4-mini", {"reasoning_effort": "low", "max_tokens": 3000}),
    "Opus": Kind("opus"),
    "Sonnet": Kind("sonnet"),
    "adaptive thinking": Kind("opus", {"thinking": {"type": "adaptive"}, "max_tokens": 2300}),
}


def answering(call: Call, choice: int) -> Reply | str:
    """Reply so that every stage of every approach finds what it asks for."""
    if form := filled_form(call.text):
        return form
    asked = str(call.text).rsplit("\n\n", 3)
    request = "\n\n".join(asked[-3:])
    if "JSON array" in request:
        return "[]"
    if "SMT-LIB" in request:
        return f"```smt2\n{SMT}\n```"
    if "marked python" in request:
        return PROGRAM
    if re.search(r"^(RATING|BEST|VERDICT):", request, re.MULTILINE):
        return VERDICT
    items = "\n".join(f"{item}. idea {call.index}.{item}" for item in (1, 2, 3))
    return f"Way {call.index}.{choice}.\n{items}\nANSWER: {100 * call.index + choice}"


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    root = upstream.url.removesuffix("/v1")
    models = [
        *(model_group(name, upstream.url) for name in ("gpt-4o-mini", "gpt-5-mini", "o4-mini")),
        model_group("gpt-5.1", upstream.url),
        model_group("sonnet", root, model="anthropic/claude-sonnet-4-5"),
        model_group("opus", root, model="anthropic/claude-opus-4-7"),
        model_group("one-choice", upstream.url),
        *(model_group(f"falling-{how}", upstream.url) for how in ("whole", "streamed")),
        *(model_group(f"strict-{how}", upstream.url) for how in ("whole", "streamed")),
    ]
    config = hooked_config(models)
    config["router_settings"]["fallbacks"] = [
        {f"falling-{how}": ["gpt-4o-mini"]} for how in ("whole", "streamed")
    ]
    folder = tmp_path_factory.mktemp("proxy")
    with WebWorld(PAGES) as world, Proxy(with_services(config, world), folder) as running:
        yield running


def ask(proxy: Proxy, name: str, kind: Kind, **more: Any) -> httpx.Response:
    body = {"model": f"{name}-{kind.model}", "messages": [QUESTION], **kind.fields, **more}
    return proxy.post("/v1/chat/completions", body)


def refused(upstream: Upstream) -> list[Any]:
    return [call.error for call in upstream.calls if call.outcome != "answered"]


def check_calls(upstream: Upstream, approach: Approach, *, saved: int = 0) -> None:
    """Check that the provider was asked for what the approach declares, and refused nothing.

    `saved`: how many of the declared calls are not needed.
    """
    assert refused(upstream) == []
    choices = sum(call.body.get("n") or 1 for call in upstream.calls)
    if is_bound(approach):
        assert 0 < choices <= cost(approach).calls
    else:
        assert choices == cost(approach).calls - saved


EVERY = pytest.mark.parametrize("approach", APPROACHES, ids=[found.name for found in APPROACHES])
SOME = pytest.mark.parametrize("name", ["bon", "cot_reflection", "moa"])


@EVERY
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_approach_runs_whole_on_every_kind_of_model(
    proxy: Proxy, upstream: Upstream, approach: Approach, kind: Kind
) -> None:
    upstream.play(Script(reply=answering))
    answer = ask(proxy, approach.name, kind)
    assert answer.status_code == 200, answer.text
    saved = 0 if kind in NOT_REASONING else SAVED.get(approach.name, 0)
    check_calls(upstream, approach, saved=saved)
    if approach.name != "none":  # a plain call, which has no report
        report = answer.json()["optillm"]
        assert (report["degraded"], report["calls"]) == ([], len(upstream.calls))


@SOME
@pytest.mark.parametrize("kind", MORE_KINDS.values(), ids=MORE_KINDS)
def test_streamed_too(proxy: Proxy, upstream: Upstream, name: str, kind: Kind) -> None:
    upstream.play(Script(reply=answering))
    answer = ask(proxy, name, kind, stream=True)
    assert answer.status_code == 200, answer.text
    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line[:7] == "data: {"]
    [report] = [chunk["optillm"] for chunk in chunks if "optillm" in chunk]
    assert report["degraded"] == []
    check_calls(upstream, get_approach(name))
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "ANSWER:" in "".join(delta.get("content") or "" for delta in deltas)
    thought = "".join(delta.get("reasoning_content") or "" for delta in deltas)
    thinks = kind.model in ("sonnet", "opus") and "top_p" not in kind.fields and kind.fields
    assert bool(thought) == bool(thinks) or name == "cot_reflection"


@SOME
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-5-mini", "sonnet", "opus"])
def test_on_the_messages_route(
    proxy: Proxy, upstream: Upstream, name: str, model: str, *, stream: bool
) -> None:
    upstream.play(Script(reply=answering))
    thinks = {"thinking": THINKING} if model == "sonnet" else {}
    body = {"model": f"{name}-{model}", "max_tokens": 4500, "stream": stream, **thinks}
    answer = proxy.post("/v1/messages", {**body, "messages": [QUESTION]})
    assert answer.status_code == 200, answer.text
    assert "ANSWER:" in answer.text
    check_calls(upstream, get_approach(name))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", ["sonnet", "opus"])
def test_claude_calls_tools(proxy: Proxy, upstream: Upstream, model: str, *, stream: bool) -> None:
    upstream.play(Script(reply=lambda *_: Reply(tool_calls=[("add", '{"a": 6}')])))
    function = {"name": "add", "parameters": {"type": "object", "properties": {}}}
    fields = {"tools": [{"type": "function", "function": function}]}
    answer = ask(proxy, "bon", Kind(model, {**fields, "reasoning_effort": "low"}), stream=stream)
    assert answer.status_code == 200, answer.text
    assert "tool_calls" in answer.text
    assert refused(upstream) == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", ["gpt-5-mini", "sonnet"])
def test_the_clients_limit_cuts_no_working_off(
    proxy: Proxy, upstream: Upstream, name: str, model: str
) -> None:
    """Anthropic needs a limit for every call; LiteLLM sends what the model can write."""
    check_nothing_is_cut_off(proxy, upstream, f"{name}-{model}")


CLIENTS = [
    ("gpt-5-mini", {"temperature": 0.3}),
    ("opus", {"temperature": 0.3}),
    ("gpt-5-mini", {"stop": ["x"]}),
    ("sonnet", {"reasoning_effort": "high", "max_tokens": 500}),
    ("sonnet", {"thinking": THINKING, "max_tokens": 2048}),
    ("sonnet", {"thinking": THINKING, "temperature": 0.3}),
]


@EVERY
@pytest.mark.parametrize(("model", "fields"), CLIENTS, ids=str)
def test_a_client_is_refused_before_anything_is_paid_as_by_the_plain_model(
    proxy: Proxy, upstream: Upstream, approach: Approach, model: str, fields: dict[str, Any]
) -> None:
    upstream.play(Script(reply=answering))
    answer = ask(proxy, approach.name, Kind(model, fields))
    assert answer.status_code == 400, answer.text
    assert list(fields)[-1] in answer.json()["error"]["message"]
    assert [call for call in upstream.calls if call.outcome == "answered"] == []
    plain = proxy.post("/v1/chat/completions", {"model": model, "messages": [QUESTION], **fields})
    assert plain.status_code == 400


def only_the_default(call: Call) -> Status | None:
    """Refuse any temperature, as a deployment whose name says nothing about its model."""
    if "temperature" not in call.body:
        return None
    said = (
        "Unsupported value: 'temperature' does not support 0.7 with this model. Only the default "
        "(1) value is supported."
    )
    return Status(400, said, error="unsupported_value")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_refusal_is_met_once_and_remembered(
    proxy: Proxy, upstream: Upstream, *, stream: bool
) -> None:
    kind = Kind(f"strict-{'streamed' if stream else 'whole'}")
    upstream.play(Script(reply=answering, fault=only_the_default))
    first = ask(proxy, "moa", kind, stream=stream)
    assert first.status_code == 200, first.text
    assert '"degraded":[]' in first.text.replace(": ", ":")
    assert len(refused(upstream)) > 0
    upstream.play(Script(reply=answering, fault=only_the_default))
    assert ask(proxy, "bon", kind, stream=stream).status_code == 200
    check_calls(upstream, get_approach("bon"))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_refusal_behind_a_fallback_is_remembered(
    proxy: Proxy, upstream: Upstream, *, stream: bool
) -> None:
    """Or the router would answer from the fallback for ever, after a refused call each time."""
    name = f"falling-{'streamed' if stream else 'whole'}"

    def fault(call: Call) -> Status | None:
        return only_the_default(call) if call.body["model"] == name else None

    for known in (False, True):
        upstream.play(Script(reply=answering, fault=fault))
        answer = ask(proxy, "cot_reflection", Kind(name), stream=stream)
        assert answer.status_code == 200, answer.text
        models = [call.body["model"] for call in upstream.calls]
        assert models == ([name] if known else [name, "gpt-4o-mini"])


def test_that_a_model_gives_one_choice_per_call_is_remembered(
    proxy: Proxy, upstream: Upstream
) -> None:

    def fault(call: Call) -> Status | None:
        return Status(400, "'n' : number must be at most 1") if "n" in call.body else None

    for known in (False, True):
        upstream.play(Script(reply=differing, fault=fault))
        assert ask(proxy, "majority_voting", Kind("one-choice")).status_code == 200
        assert [call.body["n"] for call in upstream.calls if "n" in call.body] == [3] * (not known)
        assert len(upstream.calls) == 8 + (not known)


def test_the_clients_own_temperature_is_not_dropped(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=answering, fault=only_the_default))
    answer = ask(proxy, "bon", Kind("strict-whole", {"temperature": 0.7}))
    assert answer.status_code == 400
    assert "Only the default (1) value is supported" in answer.text


@pytest.mark.parametrize("found", DECODERS, ids=[found.name for found in DECODERS])
@pytest.mark.parametrize("model", ["gpt-5-mini", "o4-mini", "sonnet", "opus"])
def test_a_decoder_says_at_once_that_it_does_not_apply(
    proxy: Proxy, upstream: Upstream, found: Approach, model: str
) -> None:
    upstream.play(Script(reply=answering))
    answer = ask(proxy, found.name, Kind(model))
    assert (answer.status_code, upstream.calls) == (400, [])
    assert found.name in answer.json()["error"]["message"]
