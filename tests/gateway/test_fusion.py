"""fusion over HTTP: the operator's panels, who may use them, and answers that stream."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from optillm_hooks.approaches.fusion import COMPARE, SYNTHESISE
from tests.proxy import Proxy, alias, hooked_config, model_group
from tests.upstream import Call, Script, Upstream

PRESETS = {
    "pair": {"models": ["base", "other"], "judge": "base", "synthesiser": "other"},
    "closed": {"models": ["base", "hidden"]},
    "broken": {"models": ["base", "nobody"]},
    "nested": {"models": ["panel"]},
}
KEYS: dict[str, dict[str, object]] = {
    "sk-all": {"models": []},
    "sk-few": {"models": ["base", "other", "panel"]},
}
QUESTION: Any = [{"role": "user", "content": "Is it worth it?"}]
JUDGEMENT = {"consensus": ["Both doubt it."], "blind_spots": ["The price."]}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    models = [
        *(model_group(name, upstream.url) for name in ("base", "other", "hidden")),
        alias("panel", "fusion(preset=pair)"),
    ]
    config = hooked_config(models, optillm_settings={"fusion": {"presets": PRESETS}})
    with Proxy(config, tmp_path_factory.mktemp("proxy"), keys=KEYS) as running:
        yield running


def reply(call: Call, _choice: int) -> str:
    if SYNTHESISE in call.text:
        return "Yes, in the end it is."
    if COMPARE.partition("{")[0] in call.text:
        return json.dumps(JUDGEMENT)
    return f"I, {call.body['model']}, have my doubts, in {call.index} ways."


def check_the_calls_of_a_pair(upstream: Upstream, *, stream: bool) -> None:
    *panel, judging, writing = upstream.calls
    assert sorted(call.body["model"] for call in panel) == ["base", "other"]
    assert (judging.body["model"], writing.body["model"]) == ("base", "other")
    assert "I, other, have my doubts" in judging.text
    assert "The price." in writing.text
    streamed = [bool(call.body.get("stream")) for call in upstream.calls]
    assert streamed == [False, False, False, stream]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("panel", {}),
        ("fusion(preset=pair)-base", {}),
        ("base", {"optillm_approach": "fusion", "optillm_params": {"fusion": {"preset": "pair"}}}),
    ],
    ids=["alias", "prefix", "body"],
)
def test_a_panel_answers_with_one_voice(
    proxy: Proxy, upstream: Upstream, model: str, fields: dict[str, Any], stream: bool
) -> None:
    upstream.play(Script(reply=reply))
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="sk-all", max_retries=0) as client:
        answer: Any = client.chat.completions.create(
            model=model, messages=QUESTION, stream=stream, extra_body=fields
        )
        if stream:
            text = "".join(c.delta.content or "" for chunk in answer for c in chunk.choices)
        else:
            text = answer.choices[0].message.content
            report = answer.model_dump()["optillm"]
            [told] = [note for note in report["notes"] if note["name"] == "judgement"]
            assert {"consensus": 1, "blind_spots": 1}.items() <= told.items()
            assert "price" not in json.dumps(report)
    assert text == "Yes, in the end it is."
    check_the_calls_of_a_pair(upstream, stream=stream)


def test_the_messages_route_streams_it_too(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=reply))
    with (
        anthropic.Anthropic(base_url=proxy.url, api_key="sk-all", max_retries=0) as claude,
        claude.messages.stream(model="panel", max_tokens=500, messages=QUESTION) as events,
    ):
        assert "".join(events.text_stream) == "Yes, in the end it is."
    check_the_calls_of_a_pair(upstream, stream=True)


def ask(proxy: Proxy, expression: str, key: str = "sk-all") -> httpx.Response:
    body = {"model": "base", "messages": QUESTION, "optillm_approach": expression}
    return proxy.http.post(
        f"{proxy.url}/v1/chat/completions",
        json=body,
        headers={"Authorization": f"Bearer {key}"},
        timeout=60,
    )


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("fusion(preset=thorough)", "'thorough' (known: broken, closed, nested, pair)"),
        ("fusion(preset=broken)", "no model 'nobody' is configured"),
        ("fusion(preset=nested)", "'panel' is itself an alias"),
        ("fusion(preset=pair,judge=nobody)", "no model 'nobody' is configured"),
    ],
)
def test_a_panel_that_cannot_run_is_refused_before_any_call(
    proxy: Proxy, upstream: Upstream, expression: str, words: str
) -> None:
    upstream.play(Script())
    refused = ask(proxy, expression)
    assert refused.status_code == 400
    assert words in refused.json()["error"]["message"]
    assert upstream.calls == []


def test_a_panel_is_for_keys_that_may_call_all_of_its_models(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(Script(reply=reply))
    refused = ask(proxy, "fusion(preset=closed)", "sk-few")
    assert refused.status_code in (401, 403)
    assert refused.json()["error"]["type"] == "key_model_access_denied"
    assert upstream.calls == []
    assert ask(proxy, "fusion(preset=pair)", "sk-few").status_code == 200


def test_a_panel_that_is_broken_is_told_at_the_start(proxy: Proxy) -> None:
    assert "fusion.presets.broken: it names 'nobody', which is not configured" in proxy.log
    assert "fusion.presets.nested: it names 'panel', which is itself an alias" in proxy.log
