"""The thinking of an answer goes back to its model with a tool's result, as the model made it."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import anthropic
import pytest

from tests.proxy import Proxy, alias, hooked_config, model_group
from tests.upstream import Reply, Script, Upstream

THOUGHT: Final = {"type": "thinking", "thinking": "Let me think of it.", "signature": "c2lnMQ=="}
SHORT: Final = {"type": "thinking", "thinking": "So.", "signature": "c2lnMg=="}
OMITTED: Final = {"type": "thinking", "thinking": "", "signature": "c2lnMw=="}
"""Newer models sign their thinking without showing it."""

REDACTED: Final = {"type": "redacted_thinking", "data": "cmVkYWN0ZWQ="}
TEXT: Final = {"type": "text", "text": "I look it up."}
CALL: Final = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"page": 1}}
TOOL: Final = {"name": "look", "input_schema": {"type": "object", "properties": {}}}
ASKED: Final = {"role": "user", "content": "What is on page 1?"}
THINKING: Final = {"type": "enabled", "budget_tokens": 1024}

REPLIES: Final = {
    "thinking": [THOUGHT, CALL],
    "thinking and text": [THOUGHT, TEXT, CALL],
    "omitted": [OMITTED, CALL],
    "redacted": [REDACTED, CALL],
    "redacted and text": [REDACTED, TEXT, CALL],
    "several blocks": [THOUGHT, SHORT, REDACTED, REDACTED, OMITTED, TEXT, CALL],
    "two calls": [THOUGHT, CALL, {**CALL, "id": "toolu_2"}],
}


@pytest.fixture(scope="module")
def client(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream
) -> Iterator[anthropic.Anthropic]:
    url = upstream.url.removesuffix("/v1")
    config = hooked_config(
        [
            model_group("claude", url, model="anthropic/claude-sonnet-4-5"),
            alias("reread", "re2", "claude"),
            alias("voted", "majority_voting(n=2)", "claude"),
            alias("shown", "moa", "claude", progress=True),
        ]
    )
    with (
        Proxy(config, tmp_path_factory.mktemp("proxy")) as proxy,
        anthropic.Anthropic(base_url=proxy.url, api_key=proxy.master_key, max_retries=0) as made,
    ):
        yield made


def ask(client: anthropic.Anthropic, stream: bool, **asked: Any) -> list[dict[str, Any]]:
    if not stream:
        answer = client.messages.create(**asked)
    else:
        with client.messages.stream(**asked) as events:
            answer = events.get_final_message()
    return [block.to_dict(exclude_none=True) for block in answer.content]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", ["claude", "reread", "voted", "shown"])
@pytest.mark.parametrize("blocks", REPLIES.values(), ids=REPLIES)
def test_thinking_comes_back_as_its_model_made_it(
    client: anthropic.Anthropic,
    upstream: Upstream,
    blocks: list[Mapping[str, Any]],
    model: str,
    stream: bool,
) -> None:
    reply = Reply(None, fields={"content": blocks}, finish_reason="tool_calls")
    upstream.play(Script(reply=lambda *_: reply))
    asked = {"model": model, "max_tokens": 4000, "tools": [TOOL], "thinking": THINKING}
    answer = ask(client, stream, **asked, messages=[ASKED])
    assert "" not in [block.get("text") for block in answer]

    upstream.play(Script(reply=lambda *_: "It is blank."))
    result = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": "nothing"}
        for block in answer
        if block["type"] == "tool_use"
    ]
    turns = [ASKED, {"role": "assistant", "content": answer}, {"role": "user", "content": result}]
    ask(client, stream, **asked, messages=turns)
    sent = upstream.calls[0].body["messages"][1]["content"]
    assert _thinking(sent) == _thinking(blocks)
    assert sent[-len(result) :] == blocks[-len(result) :]


def _thinking(blocks: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [block for block in blocks if block["type"] in ("thinking", "redacted_thinking")]
