"""Fusion: a panel of models answers, a judge compares the answers, and one answer is written.

The judge fills in a form: on what the responses agree, where they contradict each other and who is
right, what only one of them has, and what all of them miss. The last call writes the answer from
the responses and this judgement. The panel is the base model alone, or the models that `models` or
a preset of the operator's names (`optillm_settings.fusion.presets`).

Good for: open questions.
Worth it when: questions are open, such as research and critique, and several models know different
things.
Source: Wang et al. 2024, "Mixture-of-Agents Enhances Large Language Model Capabilities",
arXiv:2406.04692 (several models propose, one aggregates); Jiang et al. 2023, "LLM-Blender",
arXiv:2306.02561 (a comparison of the candidates before they are fused). The judgement as a form of
consensus, contradictions and blind spots is how gateways offer it since 2026; there is no paper on
it. Deviations: responses are shown in random order and without their author. If more than half of
them have the same final answer, the first of these is returned without judgement and synthesis,
which a weak judge would only spoil; `agreement: all` asks for all of them.
On reasoning models: the same. No prompt tells the model how to think.
Cost: at most `n + 2` calls: the responses, the judgement and the synthesis, which streams. If the
responses agree, only they are paid for. A judgement that does not fit its form is asked for again.
With `decoys`, which add a call each beside the responses, the judge also rates decoys and
responses, beside its comparison.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, Field, ValidationInfo, model_validator

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.answers.voting import contenders
from optillm_hooks.context import Context
from optillm_hooks.errors import SampleError
from optillm_hooks.final_answer import answer_from
from optillm_hooks.judging.decoys import decoys_beside, ratings_to_measure
from optillm_hooks.judging.selection import measuring
from optillm_hooks.judging.voting import ballots, elected, vote
from optillm_hooks.llm import LLM, FinalCall
from optillm_hooks.prompts import ask, data_notice, enclose, fence
from optillm_hooks.registry import (
    Cost,
    DraftingParams,
    MeasuredParams,
    Result,
    SamplerParams,
    approach,
    over_named,
)
from optillm_hooks.structured import fill
from optillm_hooks.types import Chat, Completion, Purpose, Sampling
from optillm_hooks.waves import depth_of, panel_of, sample_until_settled

COMPARE: Final = """\
Do not answer the conversation. Above are {count} responses to it, written independently of each \
other. Compare what they say, and refer to them by number. Where they contradict each other, work \
out who is right: agreement alone proves nothing, and all may be wrong. What the conversation says \
about the form of an answer does not bind you."""

SYNTHESISE: Final = """\
Now answer the conversation yourself, from what is right in these responses. Write one complete \
answer in the form that the conversation asks for. Do not mention the responses, a panel or a \
comparison."""

WITH_JUDGEMENT: Final = """\
Use the comparison: rely on what it found to be agreed, follow it where it settles a contradiction \
unless you see that it is wrong, keep what only one response has if it is right, and supply what \
all of them miss."""

RESPONSE, COMPARISON = "response", "comparison"
SETTING: Final = "optillm_settings.fusion.presets"
PANEL: Final = 3
"""Responses of a panel of one model."""

TIME_FOR_THE_PANEL: Final = 0.6
"""Share of the remaining time after which missing responses are no longer awaited."""

TIME_FOR_RATINGS: Final = 0.5
"""Share of the remaining time after which missing ratings are given up."""

_HEADINGS: Final[Mapping[str, str]] = {
    "consensus": "Agreed",
    "contradictions": "Contradictions",
    "unique_insights": "Only in one response",
    "blind_spots": "Missing in all",
}


class Judgement(BaseModel):
    """A comparison of the responses."""

    consensus: list[str] = Field(
        default_factory=list, description="What most of the responses say, at most six points."
    )
    contradictions: list[str] = Field(
        default_factory=list,
        description="Points on which responses contradict each other, at most six: who says what, "
        "and who is right and why, or that it cannot be decided.",
    )
    unique_insights: list[str] = Field(
        default_factory=list,
        description="Useful points that only one response has, at most six, and whether they hold.",
    )
    blind_spots: list[str] = Field(
        default_factory=list,
        description="What a good answer needs and no response has, at most six points.",
    )

    @model_validator(mode="after")
    def _has_any(self) -> Self:
        if not any(self.counts().values()):
            raise ValueError("name at least one point")
        return self

    def counts(self) -> dict[str, int]:
        """Return the number of points of each kind."""
        return {name: len(getattr(self, name)) for name in _HEADINGS}

    def text(self) -> str:
        """Return the points under a heading for each kind that has any."""
        kinds = [(heading, getattr(self, name)) for name, heading in _HEADINGS.items()]
        return "\n\n".join(
            "\n".join([f"{heading}:", *(f"- {point}" for point in points)])
            for heading, points in kinds
            if points
        )


class FusionParams(SamplerParams, MeasuredParams, DraftingParams):
    """Parameters that are not given take the values of the preset, if one is named."""

    model_group_fields: ClassVar[tuple[str, ...]] = ("models", "judge", "synthesiser")
    judge_fields: ClassVar[tuple[str, ...]] = ("judge",)
    samples_field: ClassVar[str] = "responses"

    preset: str | None = Field(
        default=None, description="A panel of the operator's, by its name in the settings."
    )
    n: int | None = Field(
        default=None,
        ge=1,
        le=16,
        description="Responses, by the models in turn; unset: one of each model, or 3 of the base "
        "model alone.",
    )
    judge: str | None = Field(
        default=None, description="Model group that compares the responses; unset: the base model."
    )
    synthesiser: str | None = Field(
        default=None, description="Model group that writes the answer; unset: the base model."
    )
    agreement: Literal["majority", "all"] = Field(
        default="majority",
        description="The responses that must have the same final answer for it to be returned as "
        "it is: more than half, or all, which is better if judge and synthesiser are strong.",
    )
    temperature: float = Field(
        default=1.0,
        ge=0,
        le=2,
        description="Temperature of the responses, if the client gives none.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any, info: ValidationInfo) -> Any:
        """Return `given` over the values of its preset, which the context has by name."""
        if not isinstance(given, dict) or given.get("preset") is None:
            return given
        return over_named(given, "preset", info, SETTING)

    def narrowed(self, width: int) -> Self:
        n = min(self.responses, width)
        first_m = None if self.first_m is None else min(self.first_m, n)
        return self.model_copy(update={"n": n, "first_m": first_m}) if n < self.responses else self

    @property
    def responses(self) -> int:
        return self.n or len(self.models) or PANEL


def _cost(params: FusionParams) -> Cost:
    n = params.responses
    if n == 1:
        return Cost(calls=1, depth=1)  # nothing to compare
    measured = params.decoys + ratings_to_measure(n, params.decoys)
    return Cost(calls=n + 2 + measured, depth=depth_of(params, n) + 2)


@approach("fusion", FusionParams, cost=_cost)
async def fusion(chat: Chat, llm: LLM, params: FusionParams, ctx: Context) -> Result:
    """Return the call that writes the answer, or a response that needs no other.

    If most responses call tools, the most frequent call is returned: calls are not fused. The
    synthesiser may call them too. If the responses agree, or only one is left, it is the answer; if
    it is longer than the client's `max_tokens`, a last call writes the answer from it. Failed
    responses are left out, and truncated ones too if there is a complete one. A judgement that
    fails is left out. If the synthesis fails, the answer is the first response with the most
    frequent final answer. If `decoys` show that the judge is no better than chance, the responses
    vote, and no answer is written from them.

    Raises:
        SamplesFailed: no response finished.
    """
    count = params.decoys if params.responses > 1 else 0
    sampling, until = Sampling(temperature=params.temperature), ctx.within(TIME_FOR_THE_PANEL)
    async with decoys_beside(chat, llm, ctx, count, sampling=sampling, until=until) as decoys:
        responses = contenders(await _panel(chat, llm, params, ctx))
        if responses[0].tool_calls:
            return await elected(responses, chat, ctx)
        equal = await ballots(responses, chat, ctx)
        [(leader, votes)] = Counter(at for at in equal if at is not None).most_common(1) or [(0, 1)]
        needed = len(equal) if params.agreement == "all" else len(equal) // 2 + 1
        agreed = len(equal) > 1 and votes >= needed
        ctx.trace.note("panel", asked=params.responses, finished=len(equal), largest_group=votes)
        if agreed:
            ctx.trace.save(2 + ratings_to_measure(params.responses, params.decoys))
        if agreed or len(equal) == 1:
            return answer_from(chat, responses[leader], llm, ctx)
        fallback = ctx.bounded(responses[leader], llm.facts)
        ctx.offer(fallback)
        texts = [without_reasoning(response.text) for response in responses]
        ctx.rng.shuffle(texts)
        judge, until = _named(params.judge, llm, ctx), ctx.within(TIME_FOR_RATINGS)
        async with measuring(responses, chat, llm, judge, ctx, decoys, until=until) as is_untrusted:
            judgement = await _judgement(chat, texts, judge, ctx)
            if await is_untrusted():
                ctx.trace.save(1)
                return answer_from(chat, await vote(responses, chat, llm, ctx), llm, ctx)
    ctx.progress("writing the answer from the responses")
    synthesiser = _named(params.synthesiser, llm, ctx)
    return FinalCall(_synthesis(chat, texts, judgement), fallback=fallback, llm=synthesiser)


def _named(name: str | None, llm: LLM, ctx: Context) -> LLM:
    return llm if name is None else ctx.llm(name)


async def _panel(chat: Chat, llm: LLM, params: FusionParams, ctx: Context) -> list[Completion]:
    n = params.responses
    purpose: Purpose = "answer" if n == 1 else "solution"
    ctx.progress(f"asking a panel for {n} responses")
    return await sample_until_settled(
        panel_of(params.models, llm, ctx),
        chat,
        Sampling(temperature=params.temperature, purpose=purpose),
        ctx,
        params,
        n=n,
        judged=params.agreement == "all",
        until=ctx.within(TIME_FOR_THE_PANEL),
        kind="responses",
    )


async def _judgement(chat: Chat, texts: Sequence[str], judge: LLM, ctx: Context) -> str | None:
    """Return what the judge found in the responses, or None if it fails."""
    ctx.progress(f"comparing {len(texts)} responses")
    request = COMPARE.format(count=len(texts))
    asked = ask(chat, f"{_shown(texts, RESPONSE, fence(chat, texts))}\n\n{request}")
    try:
        with ctx.trace.step("judgements"):
            found = await fill(Judgement, asked, judge, ctx)
    except SampleError as exc:
        ctx.trace.note("judgement", failed=exc.code)
        return None
    ctx.trace.note("judgement", **found.counts())
    return found.text()


def _synthesis(chat: Chat, texts: Sequence[str], judgement: str | None) -> Chat:
    """Return the conversation with the responses, their judgement if any, and the request."""
    comparisons = [] if judgement is None else [judgement]
    mark = fence(chat, [*texts, *comparisons])
    parts = [_shown(texts, RESPONSE, mark)]
    if comparisons:
        parts += [_shown(comparisons, COMPARISON, mark), WITH_JUDGEMENT]
    return ask(chat, "\n\n".join([*parts, SYNTHESISE]))


def _shown(texts: Sequence[str], label: str, mark: str) -> str:
    return f"{data_notice(label, mark)}\n\n{enclose(texts, label, mark)}"
