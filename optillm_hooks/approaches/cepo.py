"""CePO: best of n answers, each made from several plans that are carried out and compared.

Good for: a judge that knows better.
Worth it when: a judge is right in 70 % or more; with one that is mostly wrong, one call is better.
Source: Cerebras 2024, "CePO: Empowering Llama with Reasoning using Test-Time Compute",
cerebras.ai/blog/cepo (no paper). Each candidate writes plans with a confidence for each step,
carries out each plan in the same conversation, compares the solutions for inconsistencies, and
answers the question from the comparison; a judge or a vote picks one candidate. Deviations: every
stage keeps the user's system message and the earlier turns; solutions are shown as data; a round
makes only the plans that are missing, up to `planning_m` in all; prompts contain no model-specific
switches; candidates are rated from 0 to 10, not as right or wrong; by default, stages before the
last have no length limits. The stages report to the client's progress and to the trace instead of
printing.
Solutions with the same final answer are not compared, and if those of the first candidate agree, it
is the only one (Aggarwal et al. 2023, arXiv:2305.11860). A model that judges badly spoils good
solutions when it compares them. So the sum of ratings of an answer (Li et al. 2023,
arXiv:2206.02336, section 2.2) also counts the solutions behind the candidates, until `decoys` have
shown that the judge is better than chance; `choose_by: agreement` counts ratings alone.
On reasoning models: an attempt is the plain request. The plan, the request to go step by step and
the second reading are left out, because the model does all three by itself.
Cost: at most `2 * planning_n + 2` calls per candidate, 4 deep; then one judge call per candidate
(absolute), one per ordered pair (pairwise) or none (majority), all concurrent. By default at most
27 calls, 7 deep, because the other candidates wait for the plans of the first; 7 calls, 3 deep, if
its solutions agree. Each of `decoys` adds a call beside the plans and a rating.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.resources import files
from itertools import combinations
from random import Random
from typing import Any, ClassVar, Final, Literal, get_args

import yaml
from pydantic import Field, model_validator

from optillm_hooks.answers.extraction import read_json, without_reasoning
from optillm_hooks.answers.voting import contenders
from optillm_hooks.context import Context
from optillm_hooks.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    EmptyCompletion,
    ProviderFailed,
    SampleError,
)
from optillm_hooks.fanout import finished, outcomes
from optillm_hooks.final_answer import FINAL, final_answers, groups, with_solutions
from optillm_hooks.judging.choosing import Chosen, choose
from optillm_hooks.judging.decoys import UNTRUSTED, Decoys, Trust, compare, decoys_beside, trust_in
from optillm_hooks.judging.rating import rate_all
from optillm_hooks.judging.selection import agree, alike, by_agreement, rated_best
from optillm_hooks.judging.verdicts import Judge, judge_of
from optillm_hooks.judging.voting import ballots, vote, wants_text
from optillm_hooks.llm import LLM, Effort
from optillm_hooks.prompts import (
    ask,
    data_notice,
    edit_question,
    enclose,
    fence,
    follow_up,
)
from optillm_hooks.registry import Cost, DraftingParams, JudgedParams, SettlingParams, approach
from optillm_hooks.types import Answer, Chat, Completion, Json, Sampling
from optillm_hooks.waves import panel_of, sureness

PLAN = """\
Do not solve this yet. Write a short plan: numbered steps that lead to the answer, without working \
out the answer itself. After each step say how sure you are (high, medium or low) that the step is \
right and that you can carry it out."""

EXECUTE = """\
Now carry out the plan, step by step, to the end. Take special care with the steps you were less \
sure of, and where the plan turns out to be wrong, correct it and go on."""

SOLVE = "Solve this step by step, to the end."

DIVERSIFY = """\
Do not solve this. Name {count} ways to approach it that differ in kind, not in detail. Reply with \
a JSON array of {count} strings, each one or two sentences on one approach."""

REVIEW = """\
Above are {count} attempts, made independently; any of them may be wrong. Compare them. Where they \
disagree, find out which is right, if any, by working it out anew. Then write one final solution, \
with all its steps, that you stand behind. Do not refer to the attempts."""

RatingType = Literal["absolute", "pairwise", "majority"]
Preset = Literal["default", "gptoss", "qwen3"]

SUPPORT: Final = 2.0
"""What a solution behind the candidates adds to the sum of ratings of its answer.

By simulation: with less, a judge that is wrong six times in ten makes the answers worse than those
of a single call; with more, a good judge is worth less.
"""

FIRST_SHARE: Final = 0.3
"""Share of the remaining time in which the solutions of the first wave are written."""

_EFFORTS: tuple[Effort, ...] = ("xhigh", "high", "medium", "low")
"""From the most reasoning to the least."""


@cache
def preset(name: str) -> Mapping[str, Any]:
    """Return the parameters of the preset `name`."""
    file = files("optillm_hooks.approaches") / "presets" / "cepo" / f"{name}.yaml"
    values: Mapping[str, Any] = yaml.safe_load(file.read_text())
    return values


def _temperature(default: float, of: str) -> Any:
    return Field(default=default, ge=0, le=2, description=f"Temperature of {of}.")


def _length(of: str, zero: str | None = None, unset: str = "draft_tokens") -> Any:
    skip = f" 0 skips the stage: {zero}." if zero else ""
    minimum = 0 if zero else 1
    description = f"Maximum tokens of {of}; unset: {unset}.{skip}"
    return Field(default=None, ge=minimum, le=1_000_000, description=description)


class CepoParams(SettlingParams, JudgedParams, DraftingParams):
    """Parameters that are not given take the preset's values."""

    model_group_fields: ClassVar[tuple[str, ...]] = ("models", "rating_model")
    judge_fields: ClassVar[tuple[str, ...]] = ("rating_model",)
    scorer_fields: ClassVar[tuple[str, ...]] = ("rating_model",)
    samples_field: ClassVar[str] = "bestofn_n"

    preset: Preset = Field(default="default", description="Defaults of the other parameters.")
    bestofn_n: int = Field(default=3, ge=1, le=16, description="Number of candidates.")
    bestofn_temperature: float = _temperature(0.1, "the judge")
    bestofn_max_tokens: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Maximum tokens of a verdict; unset: draft_tokens.",
    )
    bestofn_rating_type: RatingType = Field(
        default="absolute",
        description="How a candidate is picked: by a rating of each, by a comparison of each "
        "ordered pair, or by the most frequent final answer.",
    )
    planning_n: int = Field(
        default=3, ge=1, le=16, description="Solutions that a candidate compares."
    )
    planning_m: int = Field(
        default=6, ge=1, le=32, description="Maximum attempts at solutions; at least planning_n."
    )
    planning_temperature_step1: float = _temperature(0.55, "plans")
    planning_temperature_step2: float = _temperature(0.25, "a plan's execution")
    planning_temperature_direct_resp: float = _temperature(0.1, "an answer without any plan")
    planning_temperature_step3: float = _temperature(0.1, "the comparison")
    planning_temperature_step4: float = _temperature(0.0, "the candidate's answer")
    planning_max_tokens_step1: int | None = _length(
        "a plan", "solutions are written without a plan"
    )
    planning_max_tokens_step2: int | None = _length("a plan's execution")
    planning_max_tokens_direct_resp: int | None = _length(
        "an answer without any plan", unset="the client's max_tokens"
    )
    planning_max_tokens_step3: int | None = _length("the comparison")
    planning_max_tokens_step4: int | None = _length(
        "the candidate's answer",
        "the comparison's solution is the answer",
        "the client's max_tokens",
    )
    use_plan_diversity: bool = Field(
        default=False, description="Give each candidate an approach of its own to follow."
    )
    rating_model: str | None = Field(
        default=None, description="Model group that judges; unset: the base model."
    )
    reasoning_effort: Effort | None = Field(
        default=None,
        description="Reasoning effort of plans and solutions, if the model takes one and the "
        "client sets none.",
    )
    use_reasoning_fallback: bool = Field(
        default=False,
        description="Retry with less than reasoning_effort if a reply fails or is truncated.",
    )
    num_of_retries: int = Field(
        default=0, ge=0, le=5, description="Retries of a call that fails at the provider."
    )

    @classmethod
    def request_fields(cls) -> Mapping[str, str]:
        """Return the names of OptiLLM's options: `cepo_` before each parameter."""
        return {f"cepo_{name}": name for name in cls.model_fields}

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        name = given.get("preset", "default")
        return {**preset(name), **given} if name in get_args(Preset) else given

    @property
    def first_wave(self) -> int:
        """The candidates whose solutions settle the answer if all of them agree, or all."""
        settling = (
            number
            for number in range(1, self.bestofn_n)
            if sureness(number * self.planning_n, 0) >= self.confidence
        )
        return next(settling, self.bestofn_n)

    @property
    def judgements(self) -> int:
        """The calls of the judge."""
        n = self.bestofn_n
        of_type = {"absolute": n + self.decoys, "pairwise": n * (n - 1), "majority": 0}
        return of_type[self.bestofn_rating_type] if n > 1 else 0

    @model_validator(mode="after")
    def _decoys_are_rated(self) -> "CepoParams":
        if self.decoys and self.bestofn_rating_type != "absolute":
            raise ValueError("decoys need bestofn_rating_type absolute")
        return self

    @model_validator(mode="after")
    def _enough_attempts(self) -> "CepoParams":
        if self.planning_m < self.planning_n:
            raise ValueError(
                f"planning_m must be at least planning_n, got {self.planning_m} and "
                f"{self.planning_n}"
            )
        return self


def _cost(params: CepoParams) -> Cost:
    plans = params.planning_max_tokens_step1 != 0
    answers = params.planning_max_tokens_step4 != 0
    candidate = params.planning_n * (1 + plans) + 1 + answers
    decoys = params.decoys if params.bestofn_n > 1 else 0
    waits = params.first_wave < params.bestofn_n
    return Cost(
        calls=params.use_plan_diversity + params.bestofn_n * candidate + decoys + params.judgements,
        depth=params.use_plan_diversity
        + (1 + waits) * (1 + plans)
        + 1
        + answers
        + (params.judgements > 0),
    )


class CutOff(SampleError):
    """A reply was truncated at its token limit."""

    status = 502
    code = "truncated"

    def __init__(self, reply: Completion) -> None:
        super().__init__("the reply was cut off")
        self.reply = reply


@approach("cepo", CepoParams, cost=_cost)
async def cepo(chat: Chat, llm: LLM, params: CepoParams, ctx: Context) -> Answer:
    """Return the candidate that the judge or the vote prefers; see `_best`.

    Complete candidates come before truncated ones. The first candidate that calls tools is
    returned unchanged. Within a candidate, attempts that fail or are truncated are repeated, up to
    `planning_m` in all. If every attempt fails, the candidate answers directly; if the comparison
    fails, it takes its first solution; if the last call fails, it takes the comparison's solution.
    A candidate that fails or is not judged is left out; if none is judged, the candidates vote.

    Raises:
        SamplesFailed: every candidate failed.
    """
    models = _Models(llm, llm, params, ctx)
    approaches = await _approaches(chat, models) if params.use_plan_diversity else []
    ctx.progress(f"working out {params.bestofn_n} candidates")
    panel = panel_of(params.models, llm, ctx)
    makers = [
        _Candidate(
            chat,
            replace(models, llm=panel[number % len(panel)]),
            number,
            ctx.child(number).rng,
            approaches[number : number + 1],
        )
        for number in range(params.bestofn_n)
    ]
    sneaky = params.decoys if params.bestofn_n > 1 else 0
    async with decoys_beside(chat, llm, ctx, sneaky, until=ctx.within(0.6)) as decoys:
        if params.first_wave < len(makers) and (sole := await _settled(makers, models)):
            return sole
        candidates = await finished([maker.answer for maker in makers], until=ctx.within(0.8))
        whole = [candidate for candidate in candidates if not candidate.truncated] or candidates
        ctx.trace.count("candidates", lost=len(makers) - len(whole), of=len(makers))
        calling = [candidate for candidate in candidates if candidate.tool_calls]
        if calling:
            return calling[0]
        candidates = contenders(candidates)
        ctx.offer(candidates[0])
        if len(candidates) == 1:
            return candidates[0]
        solutions = [solution for maker in makers for solution in maker.solutions]
        return await _best(candidates, solutions, chat, models, decoys)


async def _settled(makers: Sequence["_Candidate"], models: "_Models") -> Answer | None:
    """Return the answer of the first candidate, if the solutions of the first wave settle it.

    They do if all of them have the same final answer, or if one calls tools.
    """
    params, ctx = models.params, models.ctx
    first = makers[: params.first_wave]
    await outcomes([partial(maker.solve, share=FIRST_SHARE) for maker in first])
    found = [solution for maker in first for solution in maker.solutions]
    calling = [solution for solution in found if solution.tool_calls]
    whole = len(found) == params.first_wave * params.planning_n
    if not calling and not (whole and await _agree(found, first[0].chat, ctx)):
        return None
    solving = params.planning_n * (1 + first[0].plans)
    later = len(makers) * (1 + first[0].answers) - (not calling)
    ctx.trace.save((len(makers) - len(first)) * solving + later + params.judgements)
    if calling:
        return calling[0]
    lead = first[0]
    return await (lead.conclude(lead.solutions[0]) if lead.answers else lead.answer())


@dataclass(frozen=True, slots=True)
class _Models:
    """The request's models, called with the retries and reasoning effort of the parameters."""

    base: LLM
    llm: LLM
    """The model of a candidate."""

    params: CepoParams
    ctx: Context

    @property
    def judge(self) -> Judge:
        return judge_of(self.params.rating_model, self.base, self.ctx)

    @property
    def reason(self) -> bool:
        """Whether the model reasons by itself, maybe because of `reasoning_effort`."""
        return self.ctx.reasons(self.llm, self._fields(falls_back=False)[0])

    async def generate(
        self, chat: Chat, sampling: Sampling, *, falls_back: bool = False
    ) -> Completion:
        """Return a complete reply, after retries, and with less effort where that is allowed.

        Raises:
            CutOff: the reply was truncated, at the lowest effort too.
            SampleError: the last try failed.
        """
        error: SampleError | None = None
        for fields in self._fields(falls_back):
            for _ in range(self.params.num_of_retries + 1):
                try:
                    reply = await self.llm.complete(chat, replace(sampling, fields=fields))
                except ProviderFailed as exc:
                    if _is_permanent(exc):
                        raise
                    error = exc
                    continue
                if not reply.truncated:
                    return reply
                error = CutOff(reply)
                break
        assert error is not None  # noqa: S101 (each pass of the loops returns or sets it)
        raise error

    def _fields(self, falls_back: bool) -> list[dict[str, Json]]:
        """Return the request fields of the first try, and of each retry with less effort."""
        effort = self.params.reasoning_effort
        if (
            effort is None
            or "reasoning_effort" in self.ctx.client.fields
            or not self.llm.facts.supports("reasoning_effort")
        ):
            return [{}]
        efforts: Sequence[Effort] = [effort]
        if effort in _EFFORTS and (falls_back or self.params.use_reasoning_fallback):
            efforts = _EFFORTS[_EFFORTS.index(effort) :]
        return [{"reasoning_effort": effort} for effort in efforts]


async def _approaches(chat: Chat, models: _Models) -> list[str]:
    """Return up to one approach per candidate, or none if the model names none in two tries."""
    count = models.params.bestofn_n
    texts: list[str] = []
    for number in range(2):
        sampling = Sampling(
            temperature=models.params.planning_temperature_step1, purpose="draft", sample=number
        )
        try:
            reply = await models.generate(ask(chat, DIVERSIFY.format(count=count)), sampling)
        except SampleError:
            continue
        named = read_json(reply.text)
        values = named.values() if isinstance(named, dict) else named or []
        if texts := [text for text in values if isinstance(text, str) and text.strip()]:
            break
    models.ctx.trace.note("approaches", named=len(texts))
    models.ctx.trace.count("approaches", lost=max(0, count - len(texts)), of=count)
    return texts[:count]


@dataclass(slots=True)
class _Candidate:
    """The stages of one candidate."""

    chat: Chat
    models: _Models
    number: int
    rng: Random
    approach: Sequence[str]
    """The approach to follow, if any."""

    solutions: list[Completion] = field(default_factory=list[Completion])
    """Up to `planning_n` complete solutions, or only the first that calls tools."""

    tried: bool = False
    """Whether solutions have been asked for."""

    @property
    def plans(self) -> bool:
        """Whether a plan is written before each solution."""
        return not self.models.reason and self.models.params.planning_max_tokens_step1 != 0

    @property
    def answers(self) -> bool:
        """Whether a last call writes the answer."""
        return self.models.params.planning_max_tokens_step4 != 0

    async def answer(self) -> Completion:
        """Return one answer, made from plans, their execution and a comparison."""
        await self.solve()
        solutions = self.solutions
        if not solutions:
            return await self._direct()
        if solutions[0].tool_calls:
            return solutions[0]
        if (
            self.answers
            and len(solutions) > 1
            and await _agree(solutions, self.chat, self.models.ctx)
        ):
            self.models.ctx.trace.save(1)
            solution = solutions[0]
        else:
            solution = await self._compared(solutions)
        if not self.answers or solution.tool_calls:
            return solution
        return await self.conclude(solution)

    async def conclude(self, solution: Completion) -> Completion:
        """Return the answer that is written from a solution, or its beginning if that fails."""
        params, ctx = self.models.params, self.models.ctx
        sampling = Sampling(
            temperature=params.planning_temperature_step4,
            max_tokens=params.planning_max_tokens_step4,
            sample=self.number,
        )
        try:
            with ctx.trace.step("answers"):
                return await self.models.generate(self._shown([solution], FINAL), sampling)
        except SampleError:
            return ctx.bounded(solution, self.models.llm.facts)

    async def solve(self, share: float = 0.6) -> None:
        """Write the solutions, once, in that share of the remaining time."""
        if self.tried:
            return
        self.tried = True
        params, ctx = self.models.params, self.models.ctx
        asked = self._asked()
        found = self.solutions
        made = 0
        while len(found) < params.planning_n and made < params.planning_m:
            count = min(params.planning_n - len(found), params.planning_m - made)
            first = self.number * params.planning_m + made
            ended = await outcomes(
                [partial(self._attempt, asked, first + k) for k in range(count)],
                until=ctx.within(share),
            )
            made += count
            found += [outcome for outcome in ended if not isinstance(outcome, SampleError)]
            if calling := [solution for solution in found if solution.tool_calls]:
                found[:] = calling[:1]
                return
            if any(
                isinstance(outcome, SampleError) and _is_permanent(outcome) for outcome in ended
            ):
                break
        ctx.trace.note("solutions", candidate=self.number, attempts=made, finished=len(found))

    def _asked(self) -> Chat:
        """Return the conversation with its question stated twice, and the approach to follow."""
        chat = self.chat
        if not self.models.reason:
            chat = edit_question(
                chat, lambda text: f"{text}\n\nOnce more, to be read with care:\n{text}"
            )
        if not self.approach:
            return chat
        mark = fence(chat, self.approach)
        shown = enclose(self.approach, "approach", mark)
        return ask(chat, f"Follow this approach. {data_notice('approach', mark)}\n\n{shown}")

    async def _attempt(self, asked: Chat, sample: int) -> Completion:
        """Return a solution from its own plan, or without a plan if plans are skipped."""
        params, trace = self.models.params, self.models.ctx.trace
        executing = Sampling(
            temperature=params.planning_temperature_step2,
            max_tokens=params.planning_max_tokens_step2,
            purpose="draft",
            sample=sample,
        )
        if not self.plans:
            solving = asked if self.models.reason else ask(asked, SOLVE)
            with trace.step("solutions"):
                return await self.models.generate(solving, executing)
        planning = replace(
            executing,
            temperature=params.planning_temperature_step1,
            max_tokens=params.planning_max_tokens_step1,
        )
        with trace.step("plans"):
            plan = await self.models.generate(ask(asked, PLAN), planning)
            steps = without_reasoning(plan.text)
            if not (steps or plan.tool_calls):
                raise EmptyCompletion
        if plan.tool_calls:
            return plan
        with trace.step("solutions"):
            planned = follow_up(ask(asked, PLAN), steps, EXECUTE)
            return await self.models.generate(planned, executing)

    async def _compared(self, solutions: Sequence[Completion]) -> Completion:
        """Return the solution that a comparison writes, or the first of `solutions` if it fails."""
        params = self.models.params
        sampling = Sampling(
            temperature=params.planning_temperature_step3,
            max_tokens=params.planning_max_tokens_step3,
            purpose="answer" if params.planning_max_tokens_step4 == 0 else "draft",
            sample=self.number,
        )
        try:
            with self.models.ctx.trace.step("comparisons"):
                return await self.models.generate(self._shown(solutions, REVIEW), sampling)
        except SampleError:
            return solutions[0]

    async def _direct(self) -> Completion:
        """Return an answer without a plan, with less effort if the first try fails."""
        params = self.models.params
        sampling = Sampling(
            temperature=params.planning_temperature_direct_resp,
            max_tokens=params.planning_max_tokens_direct_resp,
            sample=self.number,
        )
        try:
            return await self.models.generate(self.chat, sampling, falls_back=True)
        except CutOff as exc:
            return exc.reply

    def _shown(self, solutions: Sequence[Completion], request: str) -> Chat:
        asked = request.format(count=len(solutions))
        return with_solutions(self.chat, solutions, asked, self.rng)


def _is_permanent(error: SampleError) -> bool:
    """Return whether another call would fail in the same way."""
    return isinstance(error, BudgetExceeded | DeadlineExceeded) or error.is_permanent


async def _agree(solutions: Sequence[Completion], chat: Chat, ctx: Context) -> bool:
    """Return whether all solutions have the same final answer."""
    if wants_text(chat, ctx):
        return False
    texts = [solution.text for solution in solutions]
    return agree(await groups(await final_answers(texts, chat, ctx), ctx))


async def _best(
    candidates: Sequence[Completion],
    solutions: Sequence[Completion],
    chat: Chat,
    models: _Models,
    decoys: Decoys,
) -> Completion:
    """Return the candidate that the judge prefers, or the vote if there is no judge to believe.

    The scores of equal answers add up, and so do the `solutions` behind the candidates as long as
    the judge has not been shown to be better than chance; see `rated_best`. Ties go to the more
    frequent answer, then to the earlier.
    """
    params, ctx = models.params, models.ctx
    equal = await ballots(candidates, chat, ctx)
    if agree(equal):
        ctx.trace.save(params.judgements)
        return candidates[0]
    ctx.progress("picking the best candidate")
    scores, trust = await _scores(candidates, equal, chat, models, decoys)
    support = await _support(candidates, solutions, chat, ctx)
    judged = trust != "chance" and any(score is not None for score in scores)
    if judged:
        believed = params.choose_by == "agreement" or trust in ("better", "reliable")
        winner = await rated_best(
            candidates,
            scores,
            equal,
            chat,
            ctx,
            choose_by=params.choose_by,
            trust=trust,
            support=() if believed else support,
        )
    elif 2 * equal.count(None) > len(equal):
        winner = await vote(candidates, chat, models.base, ctx)
    else:
        winner = candidates[by_agreement(equal, [SUPPORT] * len(candidates), support)]
    ctx.trace.note(
        "best",
        by=params.bestofn_rating_type if judged else "majority",
        candidates=len(candidates),
        scores=scores,
        winner=candidates.index(winner),
    )
    return winner


async def _support(
    candidates: Sequence[Completion], solutions: Sequence[Completion], chat: Chat, ctx: Context
) -> list[float]:
    """Return what the solutions that share its final answer add to the scores of each candidate."""
    texts = [reply.text for reply in (*candidates, *solutions)]
    same = await groups(await final_answers(texts, chat, ctx), ctx)
    of_solutions = Counter(same[len(candidates) :])
    return [0.0 if at is None else SUPPORT * of_solutions[at] for at in same[: len(candidates)]]


async def _scores(
    candidates: Sequence[Completion],
    equal: Sequence[int | None],
    chat: Chat,
    models: _Models,
    decoys: Decoys,
) -> tuple[list[float | None], Trust]:
    """Return each candidate's score from 0 to 10, None if there is none, and its worth."""
    params, ctx = models.params, models.ctx
    texts = [without_reasoning(candidate.text) for candidate in candidates]
    sampling = Sampling(
        temperature=params.bestofn_temperature,
        max_tokens=params.bestofn_max_tokens,
        purpose="judge",
    )
    match params.bestofn_rating_type:
        case "absolute":
            sneaky = await alike(await decoys.written(), equal, chat, ctx)
            rated = await rate_all([*texts, *sneaky], chat, models.judge, ctx, sampling=sampling)
            ratings, of_decoys = rated[: len(texts)], rated[len(texts) :]
            record = compare(ratings, of_decoys)
            trust = trust_in(models.judge.model, models.base.model, record, ctx)
            if trust == "chance":
                ctx.trace.doubt(UNTRUSTED)
            return ratings, trust
        case "pairwise":
            return await _wins(texts, chat, models, sampling), "unmeasured"
        case "majority":
            return [None] * len(texts), "unmeasured"


async def _wins(
    texts: Sequence[str], chat: Chat, models: _Models, sampling: Sampling
) -> list[float | None]:
    """Return each candidate's share of won comparisons, in tenths; all None without a verdict.

    Every pair is compared in both orders.
    """
    pairs = list(combinations(range(len(texts)), 2))

    def compare_pair(pair: tuple[int, int]) -> Callable[[], Awaitable[Chosen]]:
        both = [texts[at] for at in pair]
        return lambda: choose(both, chat, models.judge, models.ctx, orders=2, sampling=sampling)

    verdicts = await finished([compare_pair(pair) for pair in pairs], at_least=len(pairs))
    wins = Counter[int]()
    for pair, verdict in zip(pairs, verdicts, strict=True):
        wins.update(dict(zip(pair, verdict.votes, strict=True)))
    most = 2 * (len(texts) - 1)
    return (
        [10 * wins[at] / most for at in range(len(texts))] if wins.total() else [None] * len(texts)
    )
