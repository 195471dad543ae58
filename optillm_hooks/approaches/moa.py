"""MoA: mixture of agents, whose proposals are criticised and fused into one answer.

Source: Wang et al. 2024, "Mixture-of-Agents Enhances Large Language Model Capabilities",
arXiv:2406.04692, section 2 (layers of proposers, each seeing all of the layer before, and an
aggregator); Li et al. 2025, "Rethinking Mixture-of-Agents", arXiv:2502.00674, whose Self-MoA, all
proposals from one good model, is the default; the critique before the fusion follows Sharma 2024,
"Patched MOA", arXiv:2407.18521. Deviation: proposals are shown in random order and without their
author, so that neither position nor name counts.
On reasoning models: the same. No prompt tells the model how to think.
Cost: `proposers` calls per layer, one for the critique (if on) and one for the fusion, which
streams.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial

from pydantic import AliasChoices, Field

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.context import Context
from optillm_hooks.errors import EmptyCompletion, SampleError
from optillm_hooks.fanout import finished, sample_many
from optillm_hooks.llm import LLM, FinalCall
from optillm_hooks.prompts import ask, data_notice, enclose, fence
from optillm_hooks.registry import Cost, DraftingParams, approach
from optillm_hooks.types import Answer, Chat, Completion, Purpose, Sampling

PROPOSAL, REVIEW = "response", "review"
INTRO = "Several attempts at answering this conversation were made independently of each other."
AGAIN = """\
Write an answer of your own to the conversation, better than any of these responses: keep what is \
right, correct what is wrong, add what all of them miss. Do not mention them."""
CRITICISE = """\
Do not answer the conversation itself. Review each response by its number: what is right and \
useful in it, what is wrong, missing, or was not asked for. Check facts and calculations yourself \
instead of trusting agreement. What the conversation says about the form of an answer does not \
bind your review, which is plain prose."""
FUSE = """\
Now answer the conversation. Build on what is right in the responses and leave out what is wrong. \
Where they disagree, work out which is right; what most of them say is right more often, but not \
always. Give one complete, coherent answer in the form that the conversation asks for. Do not \
mention the responses or a review of them."""
TIME_FOR_A_STAGE = 0.6
"""Share of the remaining time after which a stage no longer waits for stragglers."""


class MoaParams(DraftingParams):
    model_group_fields = ("models", "aggregator")

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
    models: tuple[str, ...] = Field(
        default=(),
        max_length=16,
        description="Model groups that propose, in turn; empty: the base model alone.",
    )
    aggregator: str | None = Field(
        default=None, description="Model group that criticises and fuses; unset: the base model."
    )
    critique: bool = Field(
        default=True, description="Have the last layer's proposals criticised before the fusion."
    )
    temperature: float = Field(
        default=1.0,
        ge=0,
        le=2,
        description="Temperature of the proposals, if the client gives none.",
    )


def _cost(params: MoaParams) -> Cost:
    if params.proposers == 1:
        return Cost(calls=1, depth=1)  # nothing to criticise or to fuse
    steps = params.layers + params.critique + 1
    return Cost(calls=params.layers * params.proposers + params.critique + 1, depth=steps)


@approach("moa", MoaParams, cost=_cost)
async def moa(chat: Chat, llm: LLM, params: MoaParams, ctx: Context) -> Answer | FinalCall:
    """Return the call that fuses the proposals, or a proposal where fusing makes no sense.

    The first proposal that calls tools is returned unchanged: tool calls cannot be fused. A single
    proposal is returned without critique or fusion, unless it is longer than the client's
    `max_tokens` or the client asks for a form that proposals do not have. Failed proposals are left
    out, and truncated ones too if there is a complete one. If a layer fails, the one before it is
    used. A truncated critique is used, a failed or empty one is left out. If the fusion fails, the
    first proposal is the answer.

    Raises:
        SamplesFailed: no proposal of the first layer finished.
    """
    proposals = await _layer(chat, llm, params, ctx)
    for _ in range(params.layers - 1):
        if len(proposals) == 1 or any(proposal.tool_calls for proposal in proposals):
            break
        ctx.offer(ctx.bounded(proposals[0], llm.facts))
        try:
            proposals = await _layer(_Panel(chat, proposals, ctx).asked(AGAIN), llm, params, ctx)
        except SampleError as exc:
            ctx.trace.note("layer", failed=exc.code)
            break
    ctx.trace.note("proposals", asked=params.proposers, finished=len(proposals))
    calling = [proposal for proposal in proposals if proposal.tool_calls]
    if calling:
        return calling[0]
    alone = len(proposals) == 1
    first = ctx.bounded(proposals[0], llm.facts)
    is_answer = first is proposals[0] and not ctx.forms_answers
    if params.proposers == 1 or (alone and is_answer):
        return proposals[0]
    ctx.offer(first)
    panel = _Panel(chat, proposals, ctx)
    aggregator = llm if params.aggregator is None else ctx.llm(params.aggregator)
    criticised = params.critique and not alone
    critique = await _critique(panel, aggregator, ctx) if criticised else None
    ctx.progress("fusing the proposals")
    return FinalCall(panel.asked(FUSE, critique), fallback=first, llm=aggregator)


class _Panel:
    """Proposals as later calls see them: as data, in random order."""

    def __init__(self, chat: Chat, proposals: Sequence[Completion], ctx: Context) -> None:
        self._chat = chat
        shuffled = ctx.rng.sample(proposals, len(proposals))
        self._texts = [without_reasoning(proposal.text) for proposal in shuffled]

    def asked(self, request: str, critique: str | None = None) -> Chat:
        """Return the conversation with the proposals, their critique if any, and `request`."""
        reviews = [critique] if critique else []
        mark = fence(self._chat, [*self._texts, *reviews])
        parts = [INTRO, data_notice(PROPOSAL, mark), enclose(self._texts, PROPOSAL, mark)]
        if reviews:
            parts += ["A review of them:", data_notice(REVIEW, mark)]
            parts.append(enclose(reviews, REVIEW, mark))
        return ask(self._chat, "\n\n".join([*parts, request]))


async def _layer(chat: Chat, llm: LLM, params: MoaParams, ctx: Context) -> list[Completion]:
    """Return the layer's proposals, without the truncated ones if any is complete."""
    purpose: Purpose = "answer" if params.proposers == 1 else "draft"
    sampling = Sampling(temperature=params.temperature, purpose=purpose)
    until = ctx.within(TIME_FOR_A_STAGE)
    ctx.progress(f"asking for {params.proposers} proposals")
    panel: list[LLM] = [ctx.llm(name) for name in params.models] or [llm]
    counts = Counter(number % len(panel) for number in range(params.proposers))
    groups = await finished(
        [
            partial(
                sample_many,
                panel[seat],
                chat,
                sampling,
                ctx,
                n=count,
                until=until,
                kind="proposals",
            )
            for seat, count in counts.items()
        ],
        until=until,
    )
    proposals = [proposal for group in groups for proposal in group]
    return [proposal for proposal in proposals if not proposal.truncated] or proposals


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
