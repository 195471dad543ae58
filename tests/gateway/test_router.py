"""router over HTTP, and LiteLLM's complexity router over an alias, as the documentation shows."""

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
import yaml

from tests.documents import all_blocks
from tests.proxy import Proxy, hooked_config
from tests.upstream import Call, Script, Upstream

EASY, HARD = "What is 6 * 7?", "What is 6 * 77?"


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    """A proxy with both configurations of the documentation."""
    names = ("as-needed", "by-complexity")
    shown = [b.text for b in all_blocks() if any(f"model_name: {name}" in b.text for name in names)]
    models = {m["model_name"]: m for text in shown for m in yaml.safe_load(text)["model_list"]}
    models["gpt-4o-mini"]["litellm_params"] |= {"api_base": upstream.url, "api_key": "x"}
    assert set(models) == {"gpt-4o-mini", "thorough", *names}
    config = hooked_config([*models.values()])
    with Proxy(config, tmp_path_factory.mktemp("router")) as running:
        yield running


@pytest.fixture(scope="module")
def client(documented: Proxy) -> Iterator[openai.OpenAI]:
    with documented.openai() as made:
        yield made


def reply(call: Call, choice: int) -> str:
    if "RATING:" in call.text:
        return "RATING: 5"
    if "77" not in call.text:
        return "Easy.\nANSWER: 42"
    return f"Hard.\nANSWER: {462 if choice else 460 + call.index}"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("asked", "chosen", "reason"),
    [
        (EASY, "none", "samples_agree"),
        (HARD, "self_consistency", "samples_differ"),
        ("Explain how tides work.", "none", "kind"),
    ],
)
def test_what_was_chosen_is_in_the_report(
    client: openai.OpenAI, upstream: Upstream, asked: str, chosen: str, reason: str, stream: bool
) -> None:
    upstream.play(Script(reply=reply))
    answer: Any = client.chat.completions.create(
        model="as-needed", messages=[{"role": "user", "content": asked}], stream=stream
    )
    if stream:
        chunks = list(answer)
        [report] = [chunk.optillm for chunk in chunks if hasattr(chunk, "optillm")]
        text = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
    else:
        report, text = answer.optillm, answer.choices[0].message.content
        assert answer.usage.total_tokens == upstream.bill.total_tokens
    assert text
    [told] = [note for note in report["notes"] if note["name"] == "router"]
    assert (told["chosen"], told["reason"]) == (chosen, reason)
    assert report["calls"] == len(upstream.calls)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_other_routes(
    client: openai.OpenAI, documented: Proxy, upstream: Upstream, stream: bool
) -> None:
    upstream.play(Script(reply=reply))
    if stream:
        with client.responses.stream(model="as-needed", input=EASY) as events:
            said = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    else:
        said = client.responses.create(model="as-needed", input=EASY).output_text
    assert "42" in said
    asked: Any = {
        "model": "as-needed", "max_tokens": 99, "messages": [{"role": "user", "content": EASY}],
    }  # fmt: skip
    with anthropic.Anthropic(base_url=documented.url, api_key=documented.master_key) as claude:
        if stream:
            with claude.messages.stream(**asked) as pieces:
                said = "".join(pieces.text_stream)
        else:
            message: Any = claude.messages.create(**asked)
            said = message.content[0].text
    assert "42" in said


COMPLEX = (
    "Think step by step and reason carefully: design a distributed database architecture, then "
    "implement the consensus algorithm as a function, then analyse its complexity and trade-offs."
)


@pytest.mark.parametrize(("asked", "approach"), [("Hello!", None), (COMPLEX, "bon")])
def test_litellms_complexity_router_chooses_an_alias(
    client: openai.OpenAI, upstream: Upstream, asked: str, approach: str | None
) -> None:
    upstream.play(
        Script(reply=lambda call, n: f"{n} RATING: 5" if "RATING:" in call.text else f"So {n}")
    )
    answer = client.chat.completions.create(
        model="by-complexity", messages=[{"role": "user", "content": asked}]
    )
    assert answer.choices[0].message.content
    report = getattr(answer, "optillm", {"approach": None, "calls": 1})
    assert (report["approach"], report["calls"]) == (approach, len(upstream.calls))
