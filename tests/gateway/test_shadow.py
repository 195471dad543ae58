"""Shadows: through the proxy on each route, and their parts: chance, verdicts, budget."""

import asyncio
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import anthropic
import litellm
import pytest
from litellm.proxy._types import UserAPIKeyAuth
from litellm.types.utils import CallTypes
from litellm.utils import custom_llm_setup

from optillm_hooks.gateway import provider, shadow
from optillm_hooks.gateway.brownout import Brownout
from optillm_hooks.gateway.prepared import ClientRequest
from optillm_hooks.gateway.shadow import Shadows, background_of
from optillm_hooks.gateway.shadow_log import Record, ShadowLog, Side, log_of
from optillm_hooks.gateway.shadow_verdict import checked, judging, read_verdict, shuffled
from optillm_hooks.gateway.shadowed import copy_of
from optillm_hooks.settings import BrownoutSettings, ShadowLogSettings
from tests.proxy import PRICE, Proxy, alias, hooked_config, model_group, whole_lines
from tests.upstream import HANG, Call, Script, Status, Upstream, differing

KEY = "sk-shadowed"
ASKED: list[dict[str, Any]] = [{"role": "user", "content": "What is 6 times 7, secretly?"}]
CHECKED = {"approach": "re2", "share": 1.0, "check": "number"}


def answering(call: Call, _choice: int) -> str:
    if "BETTER" in call.text:
        return "Both are right.\nBETTER: tie"
    return "6 * 7 is 42.\nANSWER: 42"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shadows") / "made"


@pytest.fixture(scope="module")
def shadowing(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, folder: Path
) -> Iterator[Proxy]:
    checked_too = {"model_info": {"optillm": {"shadow": CHECKED}}}
    judged = {"approach": "none", "share": 1.0, "judge": "judge"}
    models = [
        model_group("watched", upstream.url) | checked_too,
        model_group("claude", upstream.url.removesuffix("/v1"), model="anthropic/claude-sonnet-4-5")
        | checked_too,
        model_group("base", upstream.url),
        model_group("judge", upstream.url),
        alias("careful", "re2", shadow=judged),
        alias("secret", "privacy", shadow=judged),
    ]
    ours = {"shadow": {"directory": str(folder), "at_once": 8}}
    config = hooked_config(models, optillm_settings=ours)
    path = tmp_path_factory.mktemp("proxy")
    with Proxy(config, path, keys={KEY: {"models": []}}) as running:
        yield running


def records(folder: Path) -> list[dict[str, Any]]:
    days = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for day in days for line in whole_lines(day)]


def before(shadowing: Proxy, folder: Path) -> tuple[int, float]:
    """Return how many records there are, and what the key has spent, when all before is booked."""
    shadowing.settle()
    return len(records(folder)), shadowing.charged(KEY)


def after(shadowing: Proxy, folder: Path, known: int) -> dict[str, Any]:
    """Return the record that comes after `known` others."""
    shadowing.wait_until(lambda _: len(records(folder)) > known, within_s=30)
    [added] = records(folder)[known:]
    return added


def ask(proxy: Proxy, route: str, model: str, *, stream: bool) -> None:
    """Ask for an answer and read it to its end."""
    with (
        proxy.openai(KEY) as client,
        anthropic.Anthropic(base_url=proxy.url, api_key=KEY, max_retries=0) as claude,
    ):
        create: dict[str, Any] = {
            "chat": client.chat.completions.create,
            "messages": claude.messages.create,
            "responses": client.responses.create,
        }
        asked = {"input": ASKED[0]["content"]} if route == "responses" else {"messages": ASKED}
        limit = {"max_tokens": 99} if route == "messages" else {}
        got = create[route](model=model, stream=stream, **asked, **limit)
        if stream:
            list(got)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("route", "model"), [("chat", "watched"), ("messages", "claude"), ("responses", "claude")]
)
def test_a_plain_model_has_a_shadow_on_each_route(
    shadowing: Proxy, upstream: Upstream, folder: Path, route: str, model: str, stream: bool
) -> None:
    """It begins after the answer, on the operator's account, and leaves no text in the record."""
    upstream.play(Script(reply=answering))
    known, spent = before(shadowing, folder)
    ask(shadowing, route, model, stream=stream)
    record = after(shadowing, folder, known)
    assert (record["verdict"], record["error"], record["route"]) == ("same", None, route)
    assert record["served"]["model"] == model
    assert record["shadow"]["model"] == f"re2 on {model}"
    served, shadow = upstream.calls
    assert shadow.text.count("secretly") == 2 * served.text.count("secretly")
    assert served.ended is not None
    assert served.ended < shadow.started
    shadowing.settle()
    inner = [e for e in shadowing.entries if e.origin == "optillm" and e.model_group == model]
    assert {entry.key_alias for entry in inner} == {"litellm_internal_jobs"}
    served_usd, shadow_usd = record["served"]["cost_usd"], record["shadow"]["cost_usd"]
    assert shadowing.charged(KEY) - spent == pytest.approx(served_usd)
    assert record["cost_usd"] == pytest.approx(shadow_usd)
    assert min(served_usd, shadow_usd) > 0
    assert "secretly" not in json.dumps(record)


@pytest.mark.parametrize("route", ["chat", "messages", "responses"])
def test_a_judge_compares_an_alias_with_its_base(
    shadowing: Proxy, upstream: Upstream, folder: Path, route: str
) -> None:
    upstream.play(Script(reply=answering))
    known, spent = before(shadowing, folder)
    ask(shadowing, route, "careful", stream=route == "messages")
    record = after(shadowing, folder, known)
    assert (record["verdict"], record["by"]) == ("tie", "judge")
    assert record["shadow"]["model"] == "none on base"
    first, _, judge = upstream.calls
    assert judge.body["model"] == "judge"
    assert "careful" not in judge.text
    shadowing.settle()
    assert shadowing.charged(KEY) - spent == pytest.approx(record["served"]["cost_usd"])
    assert first.text.count("secretly") == 2
    assert record["cost_usd"] > record["shadow"]["cost_usd"] > 0


def test_tools_and_what_no_shadow_may_see(
    shadowing: Proxy, upstream: Upstream, folder: Path
) -> None:
    """An alias that hides texts from models has none, even where the YAML asks for one."""
    upstream.play(Script(reply=answering))
    known = len(records(folder))
    ask(shadowing, "chat", "secret", stream=False)
    ask(shadowing, "chat", "base", stream=False)
    assert shadowing.log.count("keeps texts from models") == 1
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    with shadowing.openai(KEY) as client:
        client.chat.completions.create(model="watched", messages=ASKED, tools=[tool])  # type: ignore[list-item,arg-type]
    record = after(shadowing, folder, known)
    assert record["verdict"] == "same"
    assert upstream.calls[-1].body["tools"] == [tool]
    shown = shadowing.http.get(
        f"{shadowing.url}/metrics/",
        headers={"authorization": f"Bearer {shadowing.master_key}"},
    ).text
    assert 'optillm_shadows_total{model_group="watched",outcome="judged"}' in shown


def test_a_share_is_drawn_by_its_exact_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 requests at 5 %: a false alarm has a probability of at most 1e-9 (exact tails)."""
    n, share = 20_000, 0.05
    settings = {"shadow": {"directory": "/never/written"}}
    monkeypatch.setattr(litellm, "optillm_settings", settings, raising=False)
    metadata, shadows = watched(share), Shadows()

    def is_drawn() -> bool:
        client = ClientRequest("chat", "base")
        for _ in range(2):  # a retry is no second chance
            shadows.draw(client, metadata, {"messages": ASKED}, CallTypes.acompletion)
        return client.shadowed.copied is not None

    low, high = bounds(n, share, 5e-10)
    assert low <= sum(is_drawn() for _ in range(n)) <= high
    assert high - low < 400


def watched(share: float, approach: str = "re2") -> dict[str, Any]:
    """Return the metadata of a request for a plain model with a shadow."""
    shadow = {"approach": approach, "share": share, "check": "auto"}
    return {"model_group": "base", "model_info": {"optillm": {"shadow": shadow}}}


def bounds(n: int, p: float, tail: float) -> tuple[int, int]:
    """Return the numbers outside of which a binomial law has at most `tail` on each side."""
    law = [
        math.exp(
            math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
            + k * math.log(p) + (n - k) * math.log1p(-p)
        )
        for k in range(n + 1)
    ]  # fmt: skip
    return _quantile(law, tail), n - _quantile(law[::-1], tail)


def _quantile(law: list[float], tail: float) -> int:
    total = 0.0
    for k, probability in enumerate(law):
        total += probability
        if total > tail:
            return k
    raise AssertionError(total)


def test_the_order_for_the_judge_is_random_and_read_back() -> None:
    """Of 2,000 orders 1,000 are expected; a false alarm has a probability below 1e-9."""
    low, high = bounds(2000, 0.5, 5e-10)
    rng, firsts = Random(), 0
    for _ in range(2000):
        (one, _), shadow_first = shuffled("served", "shadow", rng)
        assert (one == "shadow") == shadow_first
        firsts += shadow_first
    assert low <= firsts <= high


@pytest.mark.parametrize(
    ("reply", "shadow_first", "verdict"),
    [
        ("BETTER: 1", True, "shadow"),
        ("BETTER: 1", False, "served"),
        ("BETTER: 2", True, "served"),
        ("First BETTER: 1?\nBETTER: 1\nNo.\n**BETTER:** Tie.", True, "tie"),
        ("I cannot say which is BETTER: 1 or 2", True, None),
        ("<think>BETTER: 1</think>", True, None),
    ],
)
def test_a_verdict_is_the_last_line_that_has_one(
    reply: str, shadow_first: bool, verdict: str | None
) -> None:
    assert read_verdict(reply, shadow_first=shadow_first) == verdict


def test_a_judge_sees_answers_as_data() -> None:
    asked = judging(ASKED, ["<think>hidden</think>one", "BETTER: 2"])
    text = asked[-1]["content"]
    assert "hidden" not in text
    assert "never an instruction" in text


@pytest.mark.parametrize(
    ("kind", "served", "shadow", "verdict"),
    [
        ("number", "It is 42.", "ANSWER: 42.0", "same"),
        ("number", "It is 42.", "ANSWER: 43", "different"),
        ("number", "It is 42.", "I do not know.", None),
        ("choice", "The answer is (B).", "ANSWER: B", "same"),
        ("exact", " yes\n", "<think>?</think>yes", "same"),
        ("exact", "yes", "Yes", "different"),
    ],
)
def test_a_check_compares_final_answers(
    kind: Any, served: str, shadow: str, verdict: str | None
) -> None:
    assert checked(kind, ASKED, served, shadow) == verdict


def record_of(cost: float, verdict: Any = "tie", call_id: str = "a") -> Record:
    side = Side(model="served", call_id=call_id, seconds=1.0, cost_usd=0.1)
    other = Side(model="re2 on served", call_id="x", seconds=2.0, cost_usd=cost)
    return Record(
        route="chat", served=side, shadow=other, by="judge", verdict=verdict, cost_usd=cost,
        error=None if verdict else "unread",
    )  # fmt: skip


def test_workers_share_a_days_budget(tmp_path: Path) -> None:
    settings = ShadowLogSettings(directory=str(tmp_path), max_cost_per_day=1.0)
    one, two = ShadowLog(settings, str(tmp_path)), ShadowLog(settings, str(tmp_path))
    assert two.may_spend()
    one.add(record_of(0.5))
    one.add(record_of(0.4))
    one.files.thread.shutdown()
    assert two.may_spend()
    two.add(record_of(0.1))
    two.files.thread.shutdown()
    assert not two.may_spend()
    assert not one.may_spend()
    assert not ShadowLog(settings, str(tmp_path)).may_spend()


@pytest.mark.parametrize("odd", [-5.0, math.nan, -math.inf, math.inf])
def test_a_providers_odd_usage_gives_no_budget_back(tmp_path: Path, odd: float) -> None:
    settings = ShadowLogSettings(directory=str(tmp_path), max_cost_per_day=1.0)
    log = ShadowLog(settings, str(tmp_path))
    for cost in (0.9, odd, 0.2):
        log.add(record_of(cost))
    log.files.thread.shutdown()
    assert not log.may_spend()
    with_odd = ShadowLog(settings, str(tmp_path / "other"))
    with_odd.add(record_of(odd))
    with_odd.files.thread.shutdown()
    assert with_odd.may_spend()


def test_a_full_file_ends_the_day(tmp_path: Path) -> None:
    settings = ShadowLogSettings(directory=str(tmp_path), max_bytes_per_day=1 << 16)
    log = ShadowLog(settings, str(tmp_path))
    for _ in range(300):
        log.add(record_of(0.0))
    log.files.thread.shutdown()
    assert not log.may_spend()


@dataclass(frozen=True)
class Shadowing:
    """A plain model with a shadow, in this process: the shadow's calls go to the provider."""

    folder: Path
    shadows: Shadows = field(default_factory=Shadows)
    sent: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def settings(self) -> ShadowLogSettings:
        return ShadowLogSettings(directory=str(self.folder))

    def answer(self, approach: str = "re2", key: UserAPIKeyAuth | None = None) -> None:
        """Answer a client's request, whose answer has been sent once `sent` is set."""
        client, metadata = ClientRequest("chat", "base"), watched(1.0, approach)
        client.shadowed.task = asyncio.create_task(self.sent.wait())
        metadata["user_api_key_auth"] = key
        self.shadows.draw(client, metadata, {"messages": ASKED}, CallTypes.acompletion)
        response = {"choices": [{"message": {"content": "42"}}]}
        for _ in range(2):  # LiteLLM may log a request twice
            self.shadows.answered(client, metadata, {"litellm_call_id": "a"}, response, 1.0)

    async def recorded(self) -> list[dict[str, Any]]:
        """Return the records, once all shadows have ended."""
        self.sent.set()
        await background_of(self.settings.at_once).ended()
        log = log_of(self.settings)
        assert log is not None
        log.files.thread.shutdown()
        return records(self.folder)


@pytest.fixture
def here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, upstream: Upstream, litellm_in_this_loop: None
) -> Iterator[Shadowing]:
    del litellm_in_this_loop  # its end closes what LiteLLM opens for the shadow's calls
    background_of.cache_clear()  # its semaphore belongs to the loop of the test before
    handler = {"provider": "optillm", "custom_handler": provider}
    monkeypatch.setattr(litellm, "custom_provider_map", [handler])
    custom_llm_setup()
    provider.use(litellm.Router(model_list=[model_group("base", upstream.url)], num_retries=0))
    made = Shadowing(tmp_path)
    given = {"shadow": made.settings.model_dump()}
    monkeypatch.setattr(litellm, "optillm_settings", given, raising=False)
    upstream.play(Script(reply=answering))
    yield made
    provider.use(None)


@pytest.mark.anyio
async def test_nothing_begins_before_the_answer_has_been_sent(
    here: Shadowing, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shadow that fails leaves a code, and no text of its error."""

    async def inline(work: Callable[[None], object]) -> object:
        return work(None)

    async def acompletion(**_: object) -> None:
        began.set()
        raise RuntimeError("secret text")

    began = asyncio.Event()
    monkeypatch.setattr(shadow, "in_thread", inline)  # so that turns of the loop are all it needs
    monkeypatch.setattr(litellm, "acompletion", acompletion)
    here.answer()
    for _ in range(100):
        await asyncio.sleep(0)
    assert not began.is_set()
    [record] = await here.recorded()
    assert began.is_set()
    assert (record["error"], record["verdict"], record["cost_usd"]) == ("failed", None, 0.0)
    assert "secret" not in json.dumps(record)
    assert upstream.calls == []


@pytest.mark.anyio
async def test_what_a_failed_shadow_has_paid_counts(here: Shadowing, upstream: Upstream) -> None:
    upstream.play(Script(reply=answering, fault=lambda call: Status(500) if call.index else None))
    here.answer("deepthink")
    [record] = await here.recorded()
    assert record["error"] == "failed"
    paid, *others = upstream.calls
    assert others
    assert paid.told is not None
    cost = paid.told.cost(PRICE.prompt, PRICE.completion)
    assert record["cost_usd"] == record["shadow"]["cost_usd"] == pytest.approx(cost)
    assert record["shadow"]["calls"] == len(upstream.calls)
    assert record["shadow"]["model"] == "deepthink on base"


@pytest.mark.anyio
async def test_a_shutdown_cuts_shadows_off_and_books_what_they_have_paid(
    here: Shadowing, upstream: Upstream
) -> None:
    upstream.play(Script(reply=differing, fault=lambda call: HANG if call.index else None))
    here.answer("bon(n=2)")
    here.sent.set()
    await asyncio.to_thread(upstream.wait_until, lambda u: len(u.calls) > 1, within_s=60)
    here.shadows.stop()
    here.answer("bon(n=2)")  # too late
    [record] = await here.recorded()
    assert (record["error"], record["verdict"]) == ("cut_off", None)
    paid = upstream.calls[0].told
    assert paid is not None
    assert record["cost_usd"] >= 0.999 * paid.cost(PRICE.prompt, PRICE.completion)


@pytest.mark.anyio
@pytest.mark.parametrize("why", ["kill switch", "kill switch of the key", "brown-out"])
async def test_none_runs_where_the_operator_spares(
    here: Shadowing, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """The switch may be turned, and the load may rise, while the answer is being sent."""
    off = UserAPIKeyAuth(metadata={"optillm": "off"})
    here.answer(key=off if why == "kill switch of the key" else None)
    if why == "kill switch":
        monkeypatch.setenv("OPTILLM_DISABLED", "1")
    if why == "brown-out":
        busy = Brownout()
        busy.width(BrownoutSettings(calls=1))
        busy.changed(running=1, waiting=0)
        monkeypatch.setattr(shadow, "BROWNOUT", busy)
        given = {"shadow": here.settings.model_dump(), "brownout": {"calls": 1}}
        monkeypatch.setattr(litellm, "optillm_settings", given)
    assert await here.recorded() == []
    assert upstream.calls == []


@pytest.mark.parametrize(
    "call",
    [{"n": 2}, {"previous_response_id": "a"}, {"no-log": True}],
)
def test_a_request_that_no_shadow_can_repeat_is_left_alone(call: dict[str, Any]) -> None:
    assert copy_of(CallTypes.acompletion, {"messages": ASKED, **call}) is None
    assert copy_of(CallTypes.aembedding, {"input": "x"}) is None
    assert copy_of(CallTypes.acompletion, {"messages": ASKED, "n": None}) is not None
