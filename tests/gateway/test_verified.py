"""verified and abmcts through the real proxy: routes, streams, the operator's check, tests."""

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.json_host import json_host
from tests.proxy import Proxy, alias, hooked_config, model_group
from tests.upstream import Call, Script, Upstream


class Checker:
    """The operator's check: the right answer is 42."""

    asked: list[Any]
    broken: tuple[int, Any] | None = None
    """The status and the body of a reply that is none."""

    def answer(self, path: str, asked: Any) -> tuple[int, Any]:
        assert path == "/check"
        self.asked.append(asked)
        return self.broken or (200, {"pass": asked["answer"].endswith("42")})


CHECKER = Checker()


@pytest.fixture(scope="module")
def checks() -> Iterator[str]:
    with json_host(CHECKER.answer) as url:
        yield f"{url}/check"


@pytest.fixture(scope="module")
def proxy(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, checks: str
) -> Iterator[Proxy]:
    config = hooked_config(
        [
            model_group("base", upstream.url),
            alias("checked", "verified(verifiers=[http])"),
            alias("tested", "verified", code_runner="monty"),
            alias("searched", "abmcts(verifiers=[http])"),
        ],
        optillm_settings={"answer_check": {"url": checks, "token": "sk-check"}},
    )
    with Proxy(config, tmp_path_factory.mktemp("verified")) as running:
        yield running


@pytest.fixture(autouse=True)
def fresh_checker() -> None:
    CHECKER.asked, CHECKER.broken = [], None


def number(call: Call, choice: int) -> int:
    """Return the number of a sample: two come with the first call, six with the second."""
    return 2 * call.index + choice


def third_time_lucky(call: Call, choice: int) -> str:
    return f"It is {42 if number(call, choice) == 2 else 41}"


QUESTION = "Which?"
ASKED: Any = [{"role": "user", "content": QUESTION}]


@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_that_the_operator_passes(
    proxy: Proxy, upstream: Upstream, stream: bool
) -> None:
    upstream.play(Script(reply=third_time_lucky))
    asked: Any = {"model": "checked", "messages": ASKED}
    client = proxy.openai()
    if stream:
        chunks = client.chat.completions.create(**asked, stream=True)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    else:
        reply = client.chat.completions.create(**asked)
        text = reply.choices[0].message.content or ""
        report = (reply.model_extra or {})["optillm"]
        assert (report["calls"], report["depth"]) == (2, 2)
        assert not report.get("degraded")
    assert text == "It is 42"
    assert {"question": QUESTION, "answer": "It is 42"} in CHECKER.asked


def test_messages_and_responses(
    claude: anthropic.Anthropic, proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(Script(reply=third_time_lucky))
    said = claude.messages.create(model="checked", max_tokens=100, messages=ASKED)
    assert [block.text for block in said.content if block.type == "text"] == ["It is 42"]
    upstream.play(Script(reply=third_time_lucky))
    found = proxy.openai().responses.create(model="checked", input=QUESTION)
    assert found.output_text == "It is 42"


@pytest.mark.parametrize(
    "broken",
    [(500, {"pass": True}), (200, []), (200, {"score": 7}), (200, {"pass": "yes"}), (200, None)],
)
def test_a_check_that_is_broken_leaves_a_vote(
    proxy: Proxy, upstream: Upstream, broken: tuple[int, Any]
) -> None:
    upstream.play(Script(reply=lambda *at: f"ANSWER: {41 + (number(*at) > 2)}"))
    CHECKER.broken = broken
    reply = proxy.openai().chat.completions.create(model="checked", messages=ASKED)
    assert reply.choices[0].message.content == "ANSWER: 42"
    assert (reply.model_extra or {})["optillm"]["degraded"] == ["verifications:8/8"]


@pytest.mark.parametrize("name", ["url", "answer_check", "check_url"])
def test_a_client_names_no_address(proxy: Proxy, upstream: Upstream, name: str) -> None:
    upstream.play(Script())
    address = "http://127.0.0.1:1/"
    with pytest.raises(openai.BadRequestError, match=name):
        proxy.openai().chat.completions.create(
            model=f"verified({name}='{address}')-base", messages=ASKED
        )
    assert not upstream.calls


def test_programs_pass_the_tests_of_the_request(proxy: Proxy, upstream: Upstream) -> None:
    def reply(call: Call, choice: int) -> str:
        return f"```python\ndef double(n):\n    return n * {number(call, choice)}\n```"

    upstream.play(Script(reply=reply))
    asked: Any = [{"role": "user", "content": "Write double.\n\n>>> double(4)\n8\n"}]
    found = proxy.openai().chat.completions.create(model="tested", messages=asked)
    assert "n * 2" in (found.choices[0].message.content or "")
    upstream.play(Script(reply=reply))
    with pytest.raises(openai.BadRequestError, match="code_runner"):
        proxy.openai().chat.completions.create(
            model="verified(verifiers=[tests])-base", messages=asked
        )


@pytest.mark.parametrize("stream", [False, True])
def test_a_search_ends_at_the_answer_that_the_operator_passes(
    proxy: Proxy, upstream: Upstream, stream: bool
) -> None:
    upstream.play(Script(reply=lambda call, _: f"It is {42 if call.index == 4 else 41}"))
    asked: Any = {"model": "searched", "messages": ASKED}
    client = proxy.openai()
    if stream:
        chunks = client.chat.completions.create(**asked, stream=True)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    else:
        reply = client.chat.completions.create(**asked)
        text = reply.choices[0].message.content or ""
        report = (reply.model_extra or {})["optillm"]
        assert (report["calls"], report["depth"], report["calls_saved"]) == (6, 3, 2)
    assert text == "It is 42"
