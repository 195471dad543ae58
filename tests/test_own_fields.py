"""An approach's own sampling fields: left out where the model refuses them, the client's never."""

from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import replace

import pytest

from optillm_hooks.budget import Limits
from optillm_hooks.context import Context, MeteredLLM
from optillm_hooks.errors import BudgetExceeded, ProviderFailed
from optillm_hooks.fanout import sample_many
from optillm_hooks.testing import ScriptedLLM, chat, context
from optillm_hooks.types import Chat, Completion, Delta, Sampling

pytestmark = pytest.mark.anyio
ASKED = chat("question")


def names(sampling: Sampling) -> set[str]:
    given = {"temperature": sampling.temperature, "top_p": sampling.top_p, **sampling.fields}
    return {name for name, value in given.items() if value is not None}


class Choosy(ScriptedLLM):
    """A model that refuses some fields together; `known` are those it is known to refuse."""

    def __init__(
        self,
        refuses: Collection[str],
        *,
        known: Collection[str] = (),
        says: Collection[str] | None = None,
        thinking: int = 0,
    ) -> None:
        super().__init__(["reply"] * 20, max_output_tokens=8000)
        self.refuses = frozenset(refuses)
        self.says = frozenset(refuses if says is None else says)
        self.remembered = [frozenset(known)] if known else []
        self.facts = replace(
            self.facts,
            takes=lambda s: not any(rule <= names(s) for rule in self.remembered),
            thinking_tokens=lambda s: thinking if "reasoning_effort" in s.fields else 0,
            remember=self.remembered.append,
        )

    def _check(self, sampling: Sampling) -> None:
        if self.refuses <= names(sampling):
            error = ProviderFailed("refused", status=400)
            error.refused = self.says
            raise error

    async def complete(self, chat: Chat, sampling: Sampling, /) -> Completion:
        self.calls.append((chat, sampling))
        self._check(sampling)
        return await self._next(chat, sampling)

    async def complete_n(self, chat: Chat, sampling: Sampling, n: int, /) -> Sequence[Completion]:
        self.calls.append((chat, sampling))
        self._check(sampling)
        return [await self._next(chat, sampling) for _ in range(n)]

    async def stream(self, chat: Chat, sampling: Sampling, /) -> AsyncGenerator[Delta, None]:
        self._check(sampling)
        async for piece in super().stream(chat, sampling):
            yield piece

    @property
    def sent(self) -> list[set[str]]:
        return [names(sampling) for _, sampling in self.calls]


def metered(
    llm: Choosy, client: Sampling | None = None, **limits: int
) -> tuple[MeteredLLM, Context]:
    ctx = context(limits=Limits(**limits), client=client)
    return MeteredLLM(llm, ctx), ctx


async def test_what_is_known_to_be_refused_is_never_sent() -> None:
    model = Choosy({"temperature"}, known={"temperature"})
    llm, ctx = metered(model)
    await llm.complete(ASKED, Sampling(temperature=0.7, top_p=0.9))
    await llm.complete(ASKED, Sampling(temperature=0.1, purpose="judge"))
    assert model.sent == [{"top_p"}, set()]
    assert ctx.budget.usage.calls == 2


async def test_of_two_that_exclude_each_other_the_temperature_is_kept() -> None:
    model = Choosy({"temperature", "top_p"}, known={"temperature", "top_p"})
    llm, _ = metered(model)
    await llm.complete(ASKED, Sampling(temperature=0.7, top_p=0.9))
    assert model.sent == [{"temperature"}]


async def test_next_to_the_clients_field_the_approachs_own_is_left_out() -> None:
    model = Choosy({"temperature", "top_p"}, known={"temperature", "top_p"})
    llm, _ = metered(model, Sampling(top_p=0.5))
    await llm.complete(ASKED, Sampling(temperature=0.7))
    assert [(s.temperature, s.top_p) for _, s in model.calls] == [(None, 0.5)]


async def test_in_place_of_the_approachs_own_goes_the_clients() -> None:
    """It is refused as the plain model refuses it, and is never dropped in silence."""
    model = Choosy({"temperature"}, known={"temperature"})
    llm, _ = metered(model, Sampling(temperature=0.2))
    with pytest.raises(ProviderFailed):
        await llm.complete(ASKED, Sampling(temperature=0.7))
    assert [s.temperature for _, s in model.calls] == [0.2]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_refusal_costs_one_try_and_is_remembered(*, streamed: bool) -> None:
    model = Choosy({"temperature"})
    llm, ctx = metered(model)
    for _ in range(2):
        if streamed:
            async with aclosing(llm.stream(ASKED, Sampling(temperature=0.7))) as pieces:
                assert "".join([piece.text async for piece in pieces]) == "reply"
        else:
            assert (await llm.complete(ASKED, Sampling(temperature=0.7))).text == "reply"
    assert model.remembered == [{"temperature"}]
    assert [sent for sent in model.sent if sent] == ([] if streamed else [{"temperature"}])
    assert ctx.budget.usage.calls == 3
    assert [call.outcome for call in ctx.trace.calls] == ["ok", "ok"]


async def test_samples_of_one_call_are_asked_for_again_too() -> None:
    model = Choosy({"temperature"})
    model.facts = replace(model.facts, max_n=4)
    llm, ctx = metered(model)
    assert len(await sample_many(llm, ASKED, Sampling(temperature=0.7), ctx, n=4)) == 4
    assert model.sent == [{"temperature"}, set()]


async def test_a_refusal_of_two_fields_is_met_by_leaving_out_the_less_wanted() -> None:
    model = Choosy({"temperature", "top_p"})
    llm, _ = metered(model)
    await llm.complete(ASKED, Sampling(temperature=0.7, top_p=0.9))
    assert model.sent == [{"temperature", "top_p"}, {"temperature"}]
    assert model.remembered == [{"temperature", "top_p"}]


async def test_the_clients_own_refused_field_is_the_clients_error() -> None:
    model = Choosy({"temperature"})
    llm, _ = metered(model, Sampling(temperature=0.2))
    for own in (None, 0.2):  # a plan takes the client's temperature for a stage's own
        with pytest.raises(ProviderFailed):
            await llm.complete(ASKED, Sampling(temperature=own))
    assert model.sent == [{"temperature"}, {"temperature"}]


async def test_what_did_not_help_is_not_remembered() -> None:
    """An error that only mentions a field, such as one about a tool of that name."""
    model = Choosy(set(), says={"temperature"})
    llm, _ = metered(model)
    with pytest.raises(ProviderFailed):
        await llm.complete(ASKED, Sampling(temperature=0.7))
    assert model.sent == [{"temperature"}, set()]
    assert model.remembered == []


async def test_a_reply_has_its_length_beside_the_thinking() -> None:
    model = Choosy({"nothing"}, thinking=4096)
    llm, _ = metered(model, Sampling(fields={"reasoning_effort": "high"}, max_tokens=5000))
    await llm.complete(ASKED, Sampling(max_tokens=500))
    await llm.complete(ASKED, Sampling(max_tokens=6000))
    await llm.complete(ASKED, Sampling(max_tokens=500, purpose="judge"))
    assert [s.max_tokens for _, s in model.calls] == [4596, 5000, 500]


async def test_a_reply_is_not_longer_than_the_model_allows() -> None:
    model = Choosy({"nothing"})
    llm, _ = metered(model)
    await llm.complete(ASKED, Sampling(max_tokens=9000))
    assert [s.max_tokens for _, s in model.calls] == [8000]


async def test_a_limit_leaves_room_for_the_thinking_or_ends_the_request() -> None:
    model = Choosy({"nothing"}, thinking=4096)
    client = Sampling(fields={"reasoning_effort": "high"})
    llm, ctx = metered(model, client, max_tokens_total=10_000)
    ctx.budget.expected_calls = 5
    await llm.complete(ASKED, Sampling())
    assert [s.max_tokens for _, s in model.calls] == [4096 + (10_000 - 1) // 5]
    llm, ctx = metered(model, client, max_tokens_total=4000)
    with pytest.raises(BudgetExceeded):
        await llm.complete(ASKED, Sampling())
    assert ctx.budget.stopped_by == "max_tokens_total"


async def test_a_format_of_the_clients_leaves_the_approachs_fields_as_they_are() -> None:
    llm = Choosy(["top_p"], known=["response_format"])
    ctx = context(limits=Limits(), client=Sampling(fields={"response_format": {"type": "text"}}))
    await MeteredLLM(llm, ctx).complete(ASKED, Sampling(temperature=0.7))
    assert llm.calls[0][1].temperature == 0.7


async def test_a_format_that_is_refused_is_not_replaced_by_the_clients() -> None:
    llm = Choosy(["response_format"])
    ctx = context(limits=Limits(), client=Sampling(fields={"response_format": {"type": "text"}}))
    own = Sampling(fields={"response_format": {"type": "json_object"}})
    await MeteredLLM(llm, ctx).complete(ASKED, own)
    assert [names(sampling) for _, sampling in llm.calls] == [{"response_format"}, set()]
