"""Each way to name an approach, by OpenAI's and Anthropic's SDKs, on each route, streamed or not.

What a request asks for is seen at the provider: how many samples each call asks for, and for whom.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import anthropic
import pytest

from tests.gateway.shared import shared_config
from tests.proxy import Proxy, alias
from tests.upstream import Script, Upstream, differing

USER = "user-7"


@dataclass(frozen=True, slots=True)
class Form:
    """A way to ask for an approach, and what the provider must see of it."""

    model: str
    approach: str
    samples: tuple[int, ...]
    """The `n` of each call, in order."""

    fields: Mapping[str, object] | None = None
    tag: str = ""
    max_calls: int | None = None


FORMS = {
    "prefix": Form("bon(n=2)-gpt-4o-mini", "bon", (2, 1, 1)),
    "prefix without parameters": Form("re2-gpt-4o-mini", "re2", (1,)),
    "chain": Form("re2&moa-gpt-4o-mini", "re2&moa", (3, 1, 1)),
    "body field": Form("gpt-4o-mini", "bon", (3, 2, 1, 1, 1, 1, 1), {"optillm_approach": "bon"}),
    "tag": Form("gpt-4o-mini", "bon", (3, 2, 1, 1, 1, 1, 1), tag="bon"),
    "parameters": Form(
        "gpt-4o-mini",
        "bon",
        (2, 1, 1),
        {"optillm_approach": "bon", "optillm_params": {"bon": {"n": 2}}},
    ),
    "alias": Form("voted", "self_consistency", (3,)),
    "alias and body field": Form(
        "voted", "bon", (3, 2, 1, 1, 1, 1, 1), {"optillm_approach": "bon"}
    ),
    "alias and parameters": Form(
        "voted",
        "self_consistency",
        (3, 4),
        {"optillm_params": {"self_consistency": {"n": 7}}},
    ),
    "alias and limits": Form(
        "voted",
        "bon",
        (3, 2, 1),
        {"optillm_approach": "bon", "optillm_limits": {"max_calls": 3}},
        max_calls=3,
    ),
    "name that the router maps to an alias": Form(
        "mapped", "bon", (3, 2, 1, 1, 1, 1, 1), {"optillm_approach": "bon"}
    ),
}


class Seen(NamedTuple):
    """What a client has of an answer."""

    text: str
    headers: Mapping[str, str]


def _system(form: Form) -> str:
    tag = f" <optillm_approach>{form.tag}</optillm_approach>" if form.tag else ""
    return f"Be brief.{tag}"


def messages(proxy: Proxy, form: Form) -> Seen:
    with anthropic.Anthropic(base_url=proxy.url, api_key=proxy.master_key, max_retries=0) as claude:
        raw = claude.messages.with_raw_response.create(
            model=form.model,
            max_tokens=200,
            system=_system(form),
            messages=[{"role": "user", "content": "6 * 7?"}],
            metadata={"user_id": USER},
            extra_body=dict(form.fields or {}),
        )
    [block] = raw.parse().content
    assert block.type == "text"
    return Seen(block.text, raw.headers)


def messages_streamed(proxy: Proxy, form: Form) -> Seen:
    with (
        anthropic.Anthropic(base_url=proxy.url, api_key=proxy.master_key, max_retries=0) as claude,
        claude.messages.stream(
            model=form.model,
            max_tokens=200,
            system=_system(form),
            messages=[{"role": "user", "content": "6 * 7?"}],
            metadata={"user_id": USER},
            extra_body=dict(form.fields or {}),
        ) as stream,
    ):
        return Seen(stream.get_final_text(), stream.response.headers)


def chat(proxy: Proxy, form: Form) -> Seen:
    with proxy.openai() as client:
        raw = client.chat.completions.with_raw_response.create(**_chat(form))
    return Seen(raw.parse().choices[0].message.content or "", raw.headers)


def chat_streamed(proxy: Proxy, form: Form) -> Seen:
    with proxy.openai() as client:
        raw = client.chat.completions.with_raw_response.create(**_chat(form), stream=True)
        chunks = list(raw.parse())
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    return Seen("".join(pieces), raw.headers)


def _chat(form: Form) -> dict[str, Any]:
    return {
        "model": form.model,
        "messages": [
            {"role": "system", "content": _system(form)},
            {"role": "user", "content": "6 * 7?"},
        ],
        "user": USER,
        "extra_body": dict(form.fields or {}),
    }


def responses(proxy: Proxy, form: Form) -> Seen:
    with proxy.openai() as client:
        raw = client.responses.with_raw_response.create(**_responses(form))
    return Seen(raw.parse().output_text, raw.headers)


def responses_streamed(proxy: Proxy, form: Form) -> Seen:
    with proxy.openai() as client:
        raw = client.responses.with_raw_response.create(**_responses(form), stream=True)
        events: list[Any] = list(raw.parse())
    [done] = [event.response for event in events if event.type == "response.completed"]
    return Seen(done.output_text, raw.headers)


def _responses(form: Form) -> dict[str, Any]:
    return {
        "model": form.model,
        "instructions": _system(form),
        "input": "6 * 7?",
        "user": USER,
        "extra_body": dict(form.fields or {}),
    }


def completions(proxy: Proxy, form: Form) -> Seen:
    with proxy.openai() as client:
        raw = client.completions.with_raw_response.create(**_completions(form))
    return Seen(raw.parse().choices[0].text, raw.headers)


def completions_streamed(proxy: Proxy, form: Form) -> Seen:
    with proxy.openai() as client:
        raw = client.completions.with_raw_response.create(**_completions(form), stream=True)
        chunks = list(raw.parse())
    return Seen("".join(c.text or "" for chunk in chunks for c in chunk.choices), raw.headers)


def _completions(form: Form) -> dict[str, Any]:
    return {
        "model": form.model,
        "prompt": f"{_system(form)} 6 * 7?",
        "user": USER,
        "extra_body": dict(form.fields or {}),
    }


ROUTES = [
    messages,
    messages_streamed,
    chat,
    chat_streamed,
    responses,
    responses_streamed,
    completions,
    completions_streamed,
]


@pytest.fixture(scope="module")
def by_default(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    config = shared_config(upstream)
    config["litellm_settings"]["optillm_settings"] = {"default_approach": "bon(n=2)"}
    impatient = alias("impatient", "self_consistency(n=3)", base="gpt-4o-mini")
    impatient["litellm_params"]["keepalive_seconds"] = 0.2
    config["model_list"].append(impatient)
    with Proxy(config, tmp_path_factory.mktemp("by_default")) as running:
        yield running


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("route", ROUTES)
def test_what_was_asked_for_is_what_the_provider_sees(
    proxy: Proxy, upstream: Upstream, form: Form, route: Callable[[Proxy, Form], Seen]
) -> None:
    assert_served(proxy, upstream, form, route)


@pytest.mark.parametrize("route", ROUTES)
def test_the_default_approach_serves_a_plain_model(
    by_default: Proxy, upstream: Upstream, route: Callable[[Proxy, Form], Seen]
) -> None:
    assert_served(by_default, upstream, Form("gpt-4o-mini", "bon", (2, 1, 1)), route)


@pytest.mark.parametrize(
    "route", [messages_streamed, chat_streamed, responses_streamed, completions_streamed]
)
def test_a_stream_that_keep_alive_has_opened_runs_the_plan(
    by_default: Proxy, upstream: Upstream, route: Callable[[Proxy, Form], Seen]
) -> None:
    """Our headers come too late for it, except on the messages route of a fast machine."""
    upstream.play(Script(reply=differing, latency_s=0.4))
    seen = route(by_default, Form("impatient", "bon", (), {"optillm_approach": "bon"}))
    assert "42" in seen.text
    assert route is messages_streamed or "x-optillm-approach" not in seen.headers
    assert [call.body.get("n", 1) for call in upstream.calls] == [3, 2, 1, 1, 1, 1, 1]
    assert {call.body.get("user") for call in upstream.calls} == {USER}


def assert_served(
    proxy: Proxy, upstream: Upstream, form: Form, route: Callable[[Proxy, Form], Seen]
) -> None:
    upstream.play(Script(reply=differing))
    seen = route(proxy, form)
    assert "42" in seen.text
    assert tuple(call.body.get("n", 1) for call in upstream.calls) == form.samples
    assert {call.body.get("user") for call in upstream.calls} == {USER}
    assert not any("optillm" in str(call.body) for call in upstream.calls)
    assert seen.headers["x-optillm-approach"] == form.approach
    assert seen.headers["x-optillm-base-model"] == "gpt-4o-mini"
    if form.max_calls is not None:
        assert seen.headers["x-optillm-max-calls"] == str(form.max_calls)
