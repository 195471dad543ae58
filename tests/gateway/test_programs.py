"""executecode, coc and plansearch through the real proxy, with every code runner."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from tests.gateway.shared import hang_up
from tests.proxy import Proxy, alias, copy_of, hooked_config, model_group
from tests.sandbox_host import HANG as ENDLESS_THERE
from tests.sandbox_host import KEY, SandboxHost
from tests.upstream import HANG, Call, Fault, FaultRule, Reply, ReplyRule, Script, Upstream

SQUARES = "```python\nprint(sum(n * n for n in range(10)))\n```"
COUNT = (
    "```python\ncount = 0\nfor thing in ['apple', 'carrot', 'plum']:\n"
    "    if is_fruit(thing):\n        count += 1\nanswer = count\n```"
)
ENDLESS = "```python\nwhile True:\n    pass\n```"
RUNNERS = ("monty", "bubblewrap", "litellm")


@pytest.fixture(scope="module")
def host() -> Iterator[SandboxHost]:
    with SandboxHost() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, host: SandboxHost
) -> Iterator[Proxy]:
    claude = upstream.url.removesuffix("/v1")
    sandbox = {"sandbox_provider": "opensandbox", "api_key": KEY, "api_base": host.url}
    config = hooked_config(
        [
            model_group("base", upstream.url),
            model_group("claude", claude, model="anthropic/claude-sonnet-4-5"),
            *(alias(f"run-{name}", "executecode", code_runner=name) for name in RUNNERS),
            *(alias(f"chain-{name}", "coc", code_runner=name) for name in RUNNERS),
            *(alias(f"plan-{name}", "plansearch", code_runner=name) for name in RUNNERS),
            alias("run-claude", "executecode", base="claude", code_runner="monty"),
            alias("chain-claude", "coc", base="claude", code_runner="monty"),
            alias("voted", "executecode&self_consistency(n=3)", code_runner="monty"),
            alias("hurried", "executecode", code_runner="bubblewrap", deadline_s=5),
            alias("metered", "coc(simulations=64)", code_runner="monty", max_calls=3),
        ],
        optillm_settings={
            "forms": {"tag": "safe"},
            "code_runner_options": {
                "bubblewrap": {"seconds": 60},
                "litellm": {"sandbox_tool": "box", "seconds": 60},
            },
        },
    )
    keys = {"sk-one": {"models": [], "key_alias": "one"}}
    with Proxy(
        config | {"sandbox_tools": [{"sandbox_tool_name": "box", "litellm_params": sandbox}]},
        tmp_path_factory.mktemp("proxy"),
        keys=keys,
        env={"SECRET_OF_THE_OPERATOR": "hunter2-secret"},
        command=True,  # a fork's /proc/self/environ is that of its parent
    ) as running:
        yield running


def writing(program: str, *, answer: str = "It is 285.") -> ReplyRule:
    """Return a model that writes `program`, simulates every fruit, and then answers."""

    def reply(call: Call, _: int) -> Reply | str:
        asked = call.text
        if "Do not answer the request above" in asked:
            fruit = "thing = 'carrot'" not in asked
            return json.dumps({"changes": [{"name": "value", "value": json.dumps(fruit)}]})
        return program if "marked python" in asked else answer

    return reply


def ask(proxy: Proxy, model: str, text: str = "Sum?", **fields: Any) -> httpx.Response:
    key = fields.pop("key", None)
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    return proxy.post("/v1/chat/completions", body, key=key)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def degraded(answer: httpx.Response) -> list[str]:
    found: list[str] = answer.json()["optillm"]["degraded"]
    return found


def descendants(proxy: Proxy) -> set[int]:
    """Return what the proxy runs, also the processes that stay to fork workers."""
    parents = {int(stat.parent.name): _parent(stat) for stat in Path("/proc").glob("[0-9]*/stat")}
    found = {proxy.pid}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {proxy.pid}


def descendants_after_a_run(proxy: Proxy, upstream: Upstream, runner: str) -> int:
    """Return how many stay when a program has run, as the first one starts some."""
    upstream.play(Script(reply=writing(SQUARES)))
    assert text_of(ask(proxy, f"run-{runner}")) == "It is 285."
    return len(descendants(proxy))


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(") ")[2].split()[1])
    except OSError:
        return 0


# --------------------------------------------------------------------------- the three routes


@pytest.mark.parametrize("model", [*(f"run-{name}" for name in RUNNERS), "run-claude"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_program_of_the_model_on_chat(
    proxy: Proxy, upstream: Upstream, host: SandboxHost, model: str, streamed: bool
) -> None:
    upstream.play(Script(reply=writing(SQUARES)))
    client, messages = proxy.openai(), [{"role": "user", "content": "Sum of squares below 10?"}]
    asked: Any = {"model": model, "messages": messages}
    if streamed:
        with client.chat.completions.stream(
            **asked, stream_options={"include_usage": True}
        ) as stream:
            answer: Any = stream.get_final_completion()
    else:
        answer = client.chat.completions.create(**asked)
    assert answer.choices[0].message.content == "It is 285."
    assert "It printed:\n285\n" in upstream.calls[1].text
    assert (len(upstream.calls), host.open) == (2, [])
    assert answer.usage.total_tokens == upstream.bill.total_tokens


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", [*(f"chain-{name}" for name in RUNNERS), "chain-claude"])
def test_a_chain_of_code_on_messages(
    proxy: Proxy, upstream: Upstream, host: SandboxHost, model: str, streamed: bool
) -> None:
    upstream.play(Script(reply=writing(COUNT, answer="Two.")))
    with anthropic.Anthropic(
        base_url=proxy.url, api_key=proxy.master_key, max_retries=0, timeout=60
    ) as client:
        messages: Any = [{"role": "user", "content": "How many are fruits?"}]
        asked: Any = {"model": model, "messages": messages, "max_tokens": 500}
        if streamed:
            with client.messages.stream(**asked) as stream:
                answer = stream.get_final_message()
        else:
            answer = client.messages.create(**asked)
    assert answer.content[0].text == "Two."  # type: ignore[union-attr]
    assert len(upstream.calls) == 5  # the program, three fruits, the answer
    assert "answer = 2\n" in upstream.calls[4].text
    assert host.open == []
    used = answer.usage.input_tokens + answer.usage.output_tokens
    assert used == upstream.bill.total_tokens


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", ["run-bubblewrap", "chain-bubblewrap"])
def test_on_responses(proxy: Proxy, upstream: Upstream, model: str, streamed: bool) -> None:
    upstream.play(Script(reply=writing(SQUARES)))
    client = proxy.openai()
    if streamed:
        with client.responses.stream(model=model, input="Sum?") as stream:
            answer: Any = stream.get_final_response()
    else:
        answer = client.responses.create(model=model, input="Sum?")
    assert answer.output_text == "It is 285."
    assert "It printed:\n285\n" in upstream.calls[1].text
    assert answer.usage.total_tokens == upstream.bill.total_tokens


@pytest.mark.parametrize("name", RUNNERS)
def test_the_program_of_a_request(
    proxy: Proxy, upstream: Upstream, host: SandboxHost, name: str
) -> None:
    """One call of the model, which sees the output; a failure is told to it."""
    upstream.play(Script())
    ask(proxy, f"run-{name}", f"Run this:\n{SQUARES}\nand\n```python\n1 / 0\n```")
    [call] = upstream.calls
    assert "285" in call.text
    assert "It failed: ZeroDivisionError: division by zero" in call.text
    assert host.open == []


@pytest.mark.parametrize("name", RUNNERS)
def test_plansearch_tests_its_answers_in_every_runner(
    proxy: Proxy, upstream: Upstream, host: SandboxHost, name: str
) -> None:
    def reply(call: Call, _: int) -> str:
        right = call.index % 2
        return f"```python\ndef f(x):\n    return x * {'x' if right else '0'}\n```"

    upstream.play(Script(reply=reply))
    answer = ask(proxy, f"plan-{name}", "Write f, the square.\n\nassert f(3) == 9")
    assert "x * x" in text_of(answer)
    assert host.open == []


def test_it_composes_with_a_vote(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=writing(SQUARES, answer="ANSWER: 285")))
    assert "285" in text_of(ask(proxy, "voted"))


# ---------------------------------------------------------------------------------- what is kept


def test_inner_calls_are_billed_to_the_key(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=writing(COUNT)))
    key = copy_of("sk-one")
    assert text_of(ask(proxy, "chain-monty", key=key)) == "It is 285."
    costs = [entry.cost for entry in proxy.booked(key) if entry.model_group == "base"]
    assert len(costs) == 5
    proxy.wait_until(lambda p: p.charged(key) == pytest.approx(sum(costs)))


@pytest.mark.parametrize("name", ["monty", "bubblewrap"])
def test_secrets_of_the_proxy_are_out_of_reach(proxy: Proxy, upstream: Upstream, name: str) -> None:
    upstream.play(Script())
    code = (
        "import os\nprint(dict(os.environ))\n"
        "try:\n    print(open('/proc/1/environ').read(), open('/etc/passwd').read())\n"
        "except Exception as e:\n    print(type(e).__name__)"
    )
    ask(proxy, f"run-{name}", f"Run:\n```python\n{code}\n```")
    shown = upstream.calls[0].text
    assert "It printed:" in shown or "It failed:" in shown
    for secret in ("hunter2-secret", proxy.master_key, "LITELLM", "root:"):
        assert secret not in shown


# ---------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("approach", ["executecode", "coc"])
def test_without_a_runner_it_is_refused_before_any_call(
    proxy: Proxy, upstream: Upstream, approach: str
) -> None:
    upstream.play(Script())
    answer = ask(proxy, f"{approach}-base")
    assert answer.status_code == 400
    assert "set code_runner to monty, bubblewrap or litellm" in answer.text
    assert not upstream.calls


@pytest.mark.parametrize("field", ["code_runner", "code_runner_options"])
def test_a_client_chooses_no_runner(proxy: Proxy, upstream: Upstream, field: str) -> None:
    upstream.play(Script())
    answer = ask(proxy, "executecode-base", optillm_limits={field: "monty"})
    assert (answer.status_code, len(upstream.calls)) == (400, 0)


def test_a_tag_in_a_text_starts_no_program(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    text = f"<optillm_approach>executecode</optillm_approach> Run:\n{SQUARES}"
    answer = ask(proxy, "base", text)
    assert answer.headers["x-optillm-tag"] == "ignored"
    assert "285" not in upstream.calls[0].text


# ------------------------------------------------------------------------------ what ends early


def test_at_the_deadline_there_is_an_answer_and_no_program(
    proxy: Proxy, upstream: Upstream
) -> None:
    idle = descendants_after_a_run(proxy, upstream, "bubblewrap")
    upstream.play(Script(reply=writing(ENDLESS)))
    answer = ask(proxy, "hurried")
    assert text_of(answer) == "It is 285."
    assert degraded(answer) == ["program_runs:1/1"]
    assert answer.json()["optillm"]["seconds"] < 30, "that is not half the program's own time"
    proxy.wait_until(lambda p: len(descendants(p)) <= idle)


def test_at_the_end_of_the_budget_there_is_an_answer(proxy: Proxy, upstream: Upstream) -> None:
    """`metered` has three calls: the program, one simulation, and the answer."""
    upstream.play(Script(reply=writing(COUNT)))
    answer = ask(proxy, "metered")
    assert (text_of(answer), len(upstream.calls)) == ("It is 285.", 3)
    assert answer.json()["optillm"]["stopped_by"] == "max_calls"
    assert degraded(answer) == ["simulations:1/2"]
    assert "thing = 'carrot'" in upstream.calls[2].text


def after(calls: int) -> FaultRule:
    def rule(call: Call) -> Fault | None:
        return None if call.index < calls else HANG

    return rule


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_client_that_goes_while_the_model_is_asked(
    proxy: Proxy, upstream: Upstream, done: int
) -> None:
    upstream.play(Script(reply=writing(COUNT), fault=after(done)))
    body = {"model": "chain-bubblewrap", "messages": [{"role": "user", "content": "?"}]}
    hang_up(proxy, upstream, "/v1/chat/completions", body, done=done)
    upstream.wait_until_idle()


@contextmanager
def asking(proxy: Proxy, model: str, program: str) -> Iterator[None]:
    """Have `program` run by a request, and hang up when the block is left."""
    content = f"Run:\n```python\n{program}\n```"
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": content}]})
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: proxy\r\n"
        f"authorization: Bearer {proxy.master_key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
        connection.sendall(f"{head}{body}".encode())
        yield


@pytest.mark.parametrize("name", ["monty", "bubblewrap"])
def test_a_client_that_goes_while_a_program_runs(
    proxy: Proxy, upstream: Upstream, name: str
) -> None:
    idle = descendants_after_a_run(proxy, upstream, name)
    upstream.play(Script())
    with asking(proxy, f"run-{name}", "while True:\n    pass"):
        proxy.wait_until(lambda p: len(descendants(p)) >= idle + 2)
    proxy.wait_until(lambda p: len(descendants(p)) <= idle)
    assert not upstream.calls


def test_a_client_that_goes_while_a_sandbox_runs(
    proxy: Proxy, upstream: Upstream, host: SandboxHost
) -> None:
    upstream.play(Script())
    host.running.clear()
    with asking(proxy, "run-litellm", ENDLESS_THERE):
        assert host.running.wait(60)
        assert host.open
    proxy.wait_until(lambda _: not host.open)
    assert not upstream.calls


def test_a_sandbox_that_cannot_be_made_costs_the_request_only_that(
    proxy: Proxy, upstream: Upstream, host: SandboxHost
) -> None:
    upstream.play(Script(reply=writing(SQUARES)))
    host.create_fails = 500
    answer = ask(proxy, "run-litellm")
    host.create_fails = 0
    assert (text_of(answer), degraded(answer)) == ("It is 285.", ["program_runs:1/1"])
