"""No text of a client or a model holds the event loop: others are answered meanwhile.

A monitor in the proxy measures for how long its loop is held, in CPU time, so that a busy machine
does not count. What LiteLLM itself needs for texts of that length is subtracted: a harmless request
of the same shape shows it. The neighbour's waits, by the clock, are told if a test fails.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

import optillm_hooks.approaches  # noqa: F401 (registers them)
from optillm_hooks.registry import all_approaches
from optillm_hooks.types import TokenLogprob
from tests.adversary import (
    EXPRESSIONS,
    FORMATS,
    HARMLESS,
    LONG_REPLIES,
    REPLIES,
    REQUESTS,
    STREAM,
)
from tests.gateway.services import PAGES, with_services
from tests.proxy import Proxy, alias, hooked_config, model_group
from tests.upstream import Call, Reply, Script, Upstream
from tests.web_world import WebWorld

ALLOWED_S = 0.2
"""How much longer than with a harmless text the loop may be held, in seconds of CPU time."""

SMALL = {
    "abmcts": "abmcts(rollouts=2)",
    "bon": "bon(n=2)",
    "cascade": "cascade(n=2)",
    "cepo": "cepo(bestofn_n=2;planning_n=1;planning_m=1;bestofn_rating_type=pairwise)",
    "cot_decoding": "cot_decoding(k=2)",
    "deepconf": "deepconf(warmup_samples=1;max_traces=2)",
    "fusion": "fusion(n=2)",
    "genselect": "genselect(n=2)",
    "majority_voting": "majority_voting(n=3)",
    "mars": "mars(num_agents=2)",
    "mcts": "mcts(simulations=1)",
    "moa": "moa(proposers=2)",
    "plansearch": "plansearch(leaves=1)",
    "pvg": "pvg(num_rounds=1;num_solutions=2)",
    "rsa": "rsa(n=2;loops=1)",
    "rstar": "rstar(num_rollouts=1)",
    "self_consistency": "self_consistency(n=3)",
    "verified": "verified(n=2)",
}
"""Expressions that run each stage of an approach with few calls; of others, the name."""

EVERY = [found.name for found in all_approaches() if "tools" not in found.needs]
MOST_TOKENS = 500
"""Tokens of a reply with log-probabilities, of which LiteLLM makes an object each."""


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    continues = {"model_info": {"optillm": {"continues_prefix": True}}}
    noted = {"model": "openai/noted", "api_key": "none", "mock_response": "noted"}
    config = hooked_config(
        [
            {**model_group("base", upstream.url), **continues},
            {"model_name": "noted", "litellm_params": noted},
            *(alias(f"small-{name}", SMALL.get(name, name)) for name in EVERY),
            alias("votes", "self_consistency(n=64)"),
            alias("many", "bon(n=16)"),
        ]
    )
    callbacks = [*config["litellm_settings"]["callbacks"], "tests.inside_proxy.holds"]
    config["litellm_settings"]["callbacks"] = callbacks
    keys: dict[str, dict[str, object]] = {"sk-adversary": {}, "sk-neighbour": {}}
    folder = tmp_path_factory.mktemp("proxy")
    with (
        WebWorld(PAGES) as world,
        Proxy(
            with_services(config, world), folder, keys=keys, ledger=False, command=True
        ) as running,
    ):
        yield running


class Neighbour(threading.Thread):
    """A client of another key, who asks a plain model and for a sign of life, again and again."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(name="neighbour")
        self.waits: list[tuple[float, float]] = []
        """When each of its requests ended, and how long it took, in seconds."""

        self.failures: list[str] = []
        self._proxy = proxy
        self._stopping = threading.Event()

    def run(self) -> None:
        body = {"model": "noted", "messages": [{"role": "user", "content": "hi"}]}
        headers = {"authorization": "Bearer sk-neighbour"}
        with httpx.Client(base_url=self._proxy.url, headers=headers, timeout=120) as http:
            while not self._stopping.wait(0.3):
                self._ask(lambda: http.get("/health/liveliness"))
                self._ask(lambda: http.post("/v1/chat/completions", json=body))

    def _ask(self, send: Callable[[], httpx.Response]) -> None:
        started = time.monotonic()
        response = send()
        ended = time.monotonic()
        self.waits.append((ended, ended - started))
        if response.status_code != 200:
            self.failures.append(response.text)

    def stop(self) -> None:
        self._stopping.set()
        self.join()


@pytest.fixture(scope="module")
def neighbour(proxy: Proxy) -> Iterator[Neighbour]:
    running = Neighbour(proxy)
    running.start()
    yield running
    running.stop()
    assert running.waits
    assert not running.failures


class Adversary:
    """Sends requests whose replies are made of given texts, and measures the loop meanwhile."""

    def __init__(self, proxy: Proxy, upstream: Upstream, neighbour: Neighbour) -> None:
        self._proxy = proxy
        self._upstream = upstream
        self._neighbour = neighbour
        self.given = 0
        """How many replies the last request was given."""

    def held(self, model: str, *replies: Reply | str, **fields: Any) -> float:
        """Return for how long the loop was held at most while one request was answered.

        Each call is answered by the next of `replies`, again and again.
        """
        numbers = itertools.count()
        self._upstream.play(
            Script(reply=lambda call, _: _scored(call, replies[next(numbers) % len(replies)]))
        )
        asked = {"messages": [{"role": "user", "content": "What is 6 * 7?"}], **fields}
        started = time.monotonic()
        response = self._proxy.post(
            "/v1/chat/completions", {"model": model, **asked}, key="sk-adversary", timeout_s=300
        )
        self._upstream.wait_until_idle()
        assert response.status_code in (200, 400, 502), response.text
        assert "Traceback" not in response.text
        self.given = next(numbers)
        time.sleep(0.02)  # a hold is noted at its end
        return max((h.cpu for h in self._proxy.holds if h.ended > started), default=0.0)

    def longest_wait(self, since: float) -> float:
        """Return how long the neighbour has waited at most, in seconds by the clock."""
        return max((wait for ended, wait in self._neighbour.waits if ended > since), default=0.0)


def _scored(call: Call, reply: Reply | str) -> Reply | str:
    """Return the reply, token by token if the call asks for log-probabilities."""
    if not call.body.get("logprobs") or isinstance(reply, Reply):
        return reply
    most = min(call.body.get("max_tokens") or MOST_TOKENS, MOST_TOKENS)
    pieces = [reply[at : at + 12] for at in range(0, len(reply), 12)][:most]
    return Reply(logprobs=[TokenLogprob(p, -0.1, ((p, -0.1), ("~", -2.5))) for p in pieces])


@pytest.fixture(scope="module")
def adversary(proxy: Proxy, upstream: Upstream, neighbour: Neighbour) -> Adversary:
    made = Adversary(proxy, upstream, neighbour)
    for _ in range(2):  # what the first requests load is not counted
        for name in ("base", "small-none", "small-self_consistency"):
            made.held(name, REPLIES["fences"])
    return made


def check(
    adversary: Adversary, control: float, model: str, *replies: Reply | str, **fields: Any
) -> None:
    """Check that a request holds the loop no longer than `control` and what is allowed."""
    since, allowed = time.monotonic(), control + ALLOWED_S
    held = adversary.held(model, *replies, **fields)
    if held > allowed:  # LiteLLM loads modules and does chores at any time; a text holds it again
        held = min(held, adversary.held(model, *replies, **fields))
    wait = adversary.longest_wait(since)
    shown = [str(reply)[:40] for reply in replies]
    assert held <= allowed, f"by {shown}; the neighbour waited up to {wait:.3f} s"


@pytest.mark.parametrize("name", EVERY)
def test_no_reply_of_a_model_holds_the_loop(adversary: Adversary, name: str) -> None:
    """Every text of the corpus is given to every approach, several of them in one request."""
    model, left = f"small-{name}", list(REPLIES.values())
    control = adversary.held(model, HARMLESS)
    while left:
        check(adversary, control, model, *left)
        left = left[max(adversary.given, 1) :]


@pytest.mark.parametrize("name", ["cot_reflection", "moa", "re2"])
def test_no_stream_of_many_pieces_holds_the_loop(adversary: Adversary, name: str) -> None:
    control = adversary.held("base", STREAM, stream=True)
    check(adversary, control, f"small-{name}", STREAM, stream=True)


@pytest.mark.parametrize("name", FORMATS)
def test_no_check_of_an_answer_holds_the_loop(adversary: Adversary, name: str) -> None:
    fields, reply = FORMATS[name]
    control = adversary.held("base", reply, **fields)
    check(adversary, control, "small-re2", reply, **fields)


@pytest.mark.parametrize("name", REQUESTS)
def test_no_request_holds_the_loop(adversary: Adversary, name: str) -> None:
    fields = REQUESTS[name]
    plain = {name: value for name, value in fields.items() if not name.startswith("optillm_")}
    control = adversary.held("base", "RATING: 7", **plain)
    check(adversary, control, "small-bon", "RATING: 7", **fields)


def test_no_counting_of_tokens_holds_the_loop(adversary: Adversary) -> None:
    control = adversary.held("many", "RATING: 7", **REQUESTS["a long prompt"])
    check(adversary, control, "many", "RATING: 7", **REQUESTS["a long prompt under limits"])


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_no_name_of_an_approach_holds_the_loop(adversary: Adversary, name: str) -> None:
    expression = EXPRESSIONS[name]
    tag = f"<optillm_approach>{expression}</optillm_approach>"
    tagged = [{"role": "user", "content": f"{tag} What is 6 * 7?"}]
    check(adversary, 0.0, "base", "42", optillm_approach=expression)
    check(adversary, 0.0, f"optillm/{expression}/base", "42")
    check(adversary, 0.0, "base", "42", messages=tagged)


@pytest.mark.parametrize("name", LONG_REPLIES)
@pytest.mark.parametrize("approach", ["bon", "self_consistency"])
def test_no_reply_of_megabytes_holds_the_loop(
    adversary: Adversary, approach: str, name: str
) -> None:
    control = adversary.held("base", LONG_REPLIES[name], n=2)
    check(adversary, control, f"small-{approach}", LONG_REPLIES[name])


def test_no_vote_on_long_formulas_holds_the_loop(adversary: Adversary) -> None:
    formulas = [
        "ANSWER: $" + " + ".join(f"x_{{{n}}}^{(n * k) % 11}" for n in range(60)) + "$"
        for k in range(64)
    ]
    control = adversary.held("votes", "ANSWER: 42")
    check(adversary, control, "votes", *formulas)
