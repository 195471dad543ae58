"""MoA: mixture of agents, whose proposals are criticised and fused into one answer.

Good for: open questions.
Worth it when: answers are texts to merge; where they can be compared, a vote is as good.
Source: Wang et al. 2024, "Mixture-of-Agents Enhances Large Language Model Capabilities",
arXiv:2406.04692, section 2 (layers of proposers, each seeing all of the layer before, and an
aggregator); Li et al. 2025, "Rethinking Mixture-of-Agents", arXiv:2502.00674, whose Self-MoA, all
proposals from one good model, is the default; the critique before the fusion follows Sharma 2024,
"Patched MOA", arXiv:2407.18521. Deviations: proposals are shown in random order and without their
author, so that neither position nor name counts; an answer that more than half of the proposals
reach stands, unless a text is asked for, because an aggregator that judges little better than
chance spoils it more often than it mends it (`overrule`).
Sampling stops when the proposals' vote is settled: Aggarwal et al. 2023, arXiv:2305.11860.
On reasoning models: the same. No prompt tells the model how to think.
Cost: `proposers` calls per layer, one for the critique (if on) and one for the fusion, which
streams. Where an answer stands, no further layer, critique or fusion is paid for. With `decoys`,
which add a call each beside the proposals, the aggregator also rates decoys and proposals, beside
the critique; without a critique that is one call deeper.
"""

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from pydantic import AliasChoices, Field

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.context import Context
from optillm_hooks.errors import EmptyCompletion, SampleError
from optillm_hooks.judging.decoys import Decoys, decoys_beside, ratings_to_measure
from optillm_hooks.judging.selection import measuring
from optillm_hooks.judging.voting import ballots, vote, wants_text
from optillm_hooks.llm import LLM, FinalCall
from optillm_hooks.prompts import ask, data_notice, enclose, fence
from optillm_hooks.registry import Cost, DraftingParams, MeasuredParams, SamplerParams, approach
from optillm_hooks.types import Answer, Chat, Completion, Purpose, Sampling
from optillm_hooks.waves import depth_of, panel_of, sample_until_settled

PROPOSAL, REVIEW = "response", "review"
INTRO = "Several attempts at answering this conversation were made independently of each other."
AGAIN = """\
Write an answer of your own to the conversation, better than any of these responses: keep what is \
right, correct what is wrong, add what all of them miss. Do not mention them."""
CRITICISE = """\
Do not answer the conversation itself. Review each response by its number: what is right and \
useful in it, what is wrong, missing, or was not asked for. Check facts and calculations yourself. \
What the conversation says about the form of an answer does not bind your review, which is plain \
prose."""
FUSE = """\
Now answer the conversation. Build on what is right in the responses and leave out what is wrong. \
Where they disagree, work out which is right. An answer that several of them reach independently \
is right more often: depart from it only for an error that you can name. Give one complete, \
coherent answer in the form that the conversation asks for. Do not mention the responses or a \
review of them."""
SAME = "The same final answer is reached by the responses {numbers}."
TIME_FOR_A_STAGE = 0.6
"""Share of the remaining time after which a stage no longer waits for stragglers."""


class MoaParams(SamplerParams, MeasuredParams, DraftingParams):
    proposers: int = Field(
        default=3,
        ge=1,
        le=16,
        validation_alias=AliasChoices("proposers", "n"),
        description="Proposals in each layer; `n` is another name for it.",
    )
    layers: int = Field(
        default=1, ge=1, le=4, description="Layers of proposers; each sees the layer before."
    )
    aggregator: str | None = Field(
        default=None, description="Model group that criticises and fuses; unset: the base model."
    )
    critique: bool = Field(
        default=True, description="Have the last layer's proposals criticised before the fusion."
    )
    overrule: bool = Field(
        default=False,
        description="Fuse the proposals although more than half of them reach the same answer, "
        "unless all do.",
    )
    temperature: float = Field(
        default=1.0,
        ge=0,
        le=2,
        description="Temperature of the proposals, if the client gives none.",
    )

    model_group_fields: ClassVar[tuple[str, ...]] = ("models", "aggregator")
    samples_field: ClassVar[str] = "proposers"


def _cost(params: MoaParams) -> Cost:
    if params.proposers == 1:
        return Cost(calls=1, depth=1)  # nothing to criticise or to fuse
    layers, waves = params.layers, depth_of(params, params.proposers)
    measured = params.decoys + ratings_to_measure(params.proposers, params.decoys)
    return Cost(
        calls=layers * params.proposers + measured + params.critique + 1,
        depth=layers * waves + (params.critique or bool(measured)) + 1,
    )


@approach("moa", MoaParams, cost=_cost)
async def moa(chat: Chat, llm: LLM, params: MoaParams, ctx: Context) -> Answer | FinalCall:
    """Return the call that fuses the proposals, or a proposal where fusing makes no sense.

    The first proposal that calls tools is returned unchanged: tool calls cannot be fused. If a
    layer agrees on an answer, as `overrule` says, the first proposal with that answer is returned,
    as a single one is, without further layers, critique or fusion, unless it is longer than the
    client's `max_tokens` or the client asks for a form that proposals do not have. Failed proposals
    are left out, and truncated ones too if there is a complete one. If a layer fails, the one
    before it is used. A truncated critique is used, a failed or empty one is left out. If the
    fusion fails, the first proposal is the answer. If `decoys` show that the aggregator judges no
    better than chance, the proposals of the last layer vote, and nothing is fused.

    Raises:
        SamplesFailed: no proposal of the first layer finished.
    """
    count = params.decoys if params.proposers > 1 else 0
    sampling = Sampling(temperature=params.temperature, purpose="draft")
    until = ctx.within(TIME_FOR_A_STAGE)
    async with decoys_beside(chat, llm, ctx, count, sampling=sampling, until=until) as decoys:
        return await _mixed(chat, llm, params, ctx, decoys)


async def _mixed(
    chat: Chat, llm: LLM, params: MoaParams, ctx: Context, decoys: Decoys
) -> Answer | FinalCall:
    """Return what `moa` returns, with the aggregator measured by `decoys`."""
    panel = await _layer(chat, chat, llm, params, ctx)
    layers = 1
    while layers < params.layers and not panel.is_last:
        ctx.offer(ctx.bounded(panel.first, llm.facts))
        try:
            panel = await _layer(panel.asked(AGAIN), chat, llm, params, ctx)
        except SampleError as exc:
            ctx.trace.note("layer", failed=exc.code)
            break
        layers += 1
    finished, agreed = len(panel.proposals), panel.agreed
    ctx.trace.note("proposals", asked=params.proposers, finished=finished, agreed=len(agreed))
    if panel.calling:
        return panel.calling[0]
    aggregator = llm if params.aggregator is None else ctx.llm(params.aggregator)
    critique, settled = None, bool(agreed)
    if agreed:
        ratings = ratings_to_measure(params.proposers, params.decoys)
        ctx.trace.save((params.layers - layers) * params.proposers + params.critique + ratings)
        panel = _Panel(chat, agreed[:1], [None], ctx, params)
    elif len(panel.proposals) > 1:
        ctx.offer(ctx.bounded(panel.first, llm.facts))
        until = ctx.within(TIME_FOR_A_STAGE)
        async with measuring(
            panel.proposals, chat, llm, aggregator, ctx, decoys, until=until
        ) as is_untrusted:
            critique = await _critique(panel, aggregator, ctx) if params.critique else None
            settled = await is_untrusted()
        if settled:
            voted = await vote(panel.proposals, chat, llm, ctx)
            critique, panel = None, _Panel(chat, [voted], [None], ctx, params)
    first = ctx.bounded(panel.first, llm.facts)
    is_answer = first is panel.first and not ctx.forms_answers
    if params.proposers == 1 or (len(panel.proposals) == 1 and is_answer):
        ctx.trace.save(settled)
        return panel.first
    ctx.offer(first)
    ctx.progress("fusing the proposals")
    return FinalCall(panel.asked(FUSE, critique), fallback=first, llm=aggregator)


class _Panel:
    """The proposals of a layer. Later calls see them as data, in random order."""

    def __init__(
        self,
        chat: Chat,
        proposals: Sequence[Completion],
        equal: Sequence[int | None],
        ctx: Context,
        params: MoaParams,
    ) -> None:
        """Make a panel of `proposals`, whose `ballots` are `equal`."""
        self.proposals = proposals
        self._equal = equal
        self._needed = len(proposals) if params.overrule else len(proposals) // 2 + 1
        self._chat = chat
        self._order = ctx.rng.sample(range(len(proposals)), len(proposals))

    @property
    def first(self) -> Completion:
        return self.proposals[0]

    @property
    def calling(self) -> list[Completion]:
        """The proposals that call tools."""
        return [proposal for proposal in self.proposals if proposal.tool_calls]

    @property
    def agreed(self) -> list[Completion]:
        """The proposals with the answer that enough of them reach; none if there is none."""
        answers = Counter(answer for answer in self._equal if answer is not None)
        [(most, count)] = answers.most_common(1) or [(0, 0)]
        if len(self.proposals) == 1 or count < self._needed or self.first.truncated:
            return []
        return [p for p, answer in zip(self.proposals, self._equal, strict=True) if answer == most]

    @property
    def is_last(self) -> bool:
        """Whether a further layer could only spoil it."""
        return len(self.proposals) == 1 or bool(self.calling) or bool(self.agreed)

    def asked(self, request: str, critique: str | None = None) -> Chat:
        """Return the conversation with the proposals, their critique if any, and `request`."""
        texts = [without_reasoning(self.proposals[at].text) for at in self._order]
        reviews = [critique] if critique else []
        mark = fence(self._chat, [*texts, *reviews])
        parts = [INTRO, data_notice(PROPOSAL, mark), enclose(texts, PROPOSAL, mark)]
        parts += self._agreements()
        if reviews:
            parts += ["A review of them:", data_notice(REVIEW, mark)]
            parts.append(enclose(reviews, REVIEW, mark))
        return ask(self._chat, "\n\n".join([*parts, request]))

    def _agreements(self) -> list[str]:
        """Return a line for each answer that several proposals reach, with their numbers."""
        shown = [self._equal[at] for at in self._order]
        answers = Counter(answer for answer in shown if answer is not None)
        numbers = [
            [number for number, other in enumerate(shown, 1) if other == answer]
            for answer, count in answers.items()
            if count > 1
        ]
        return [SAME.format(numbers=", ".join(map(str, of_one))) for of_one in numbers]


async def _layer(asked: Chat, chat: Chat, llm: LLM, params: MoaParams, ctx: Context) -> _Panel:
    """Return the layer's proposals, without the truncated ones if any is complete."""
    purpose: Purpose = "answer" if params.proposers == 1 else "draft"
    ctx.progress(f"asking for {params.proposers} proposals")
    sampled = await sample_until_settled(
        panel_of(params.models, llm, ctx),
        asked,
        Sampling(temperature=params.temperature, purpose=purpose),
        ctx,
        params,
        n=params.proposers,
        chat=chat,
        judged=params.overrule or wants_text(chat, ctx),
        until=ctx.within(TIME_FOR_A_STAGE),
        kind="proposals",
    )
    proposals = [proposal for proposal in sampled if not proposal.truncated] or sampled
    equal = await ballots(proposals, chat, ctx) if len(proposals) > 1 else [None]
    return _Panel(chat, proposals, equal, ctx, params)


async def _critique(panel: _Panel, aggregator: LLM, ctx: Context) -> str | None:
    """Return the aggregator's review of the proposals, or None if there is none."""
    ctx.progress("comparing the proposals")
    sampling = Sampling(temperature=0.1, purpose="judge")
    try:
        with ctx.trace.step("critiques"):
            critique = await aggregator.complete(panel.asked(CRITICISE), sampling)
            if not (text := without_reasoning(critique.text)):
                raise EmptyCompletion
    except SampleError as exc:
        ctx.trace.note("critique", failed=exc.code)
        return None
    ctx.trace.note("critique", truncated=critique.truncated)
    return text
