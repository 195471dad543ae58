"""MARS: agents explore, merge solutions, exchange strategies, and verify each other's solutions.

Good for: a judge that knows better.
Worth it when: a judge is right in 70 % or more; one that is mostly wrong makes it worse than one
call.
Source: Venkatraman et al. 2025, "Recursive Self-Aggregation Unlocks Deep Thinking in Large
Language Models", arXiv:2509.26626, section 3 (each of T loops writes a population of N solutions
anew, each from a random subset of K), and Huang and Yang 2025, "Gemini 2.5 Pro Capable of Winning
Gold at IMO 2025", arXiv:2507.15855, section 3 (a verifier's report, improvement from it, acceptance
after consecutive passes). In addition, agents exchange strategies, and a solution is never verified
by its author. Deviations: aggregation and the exchange of strategies run concurrently, since
neither needs the other; solutions with the most frequent final answers are verified first, and only
until enough are confirmed; agents differ in temperature and, if `models` is set, in model. The
first paper ends with a vote; here the vote decides only if verification does not. Merging stops
when all solutions of a loop have the same final answer; if the explorations have, they are only
verified (Aggarwal et al. 2023, arXiv:2305.11860). Unlike in OptiLLM, a small `max_tokens` of the
client does not make the search smaller: `lightweight` does.
Merging and verification follow the judgement of a model: a good one makes the answers much better,
and one that is more often wrong than right makes them worse than those of a single call. `decoys`
measure it; if the verifier is no better than chance, the explorations vote.
On reasoning models: explorations are not told how to work, and strategies are not exchanged, which
saves their calls. Aggregation and verification were made for such models.
Cost: if all goes well, `num_agents` explorations, `aggregation_loops * population_size`
aggregations and concurrently `2 * num_agents` calls for strategies, then
`consensus_threshold * verification_passes_required` verifications: 31 calls, 5 deep; 7 calls, 2
deep, if the explorations agree. Each of `decoys` adds a call and a verification. Each round of
improvement adds up to `num_agents * (1 + max_verification_attempts)` calls, 2 or more deep. A
solution that is longer than the client's `max_tokens` adds one.
"""

import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, ClassVar, Final, Literal, cast

from pydantic import BaseModel, Field, model_validator

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.answers.verdicts import last_part
from optillm_hooks.answers.voting import contenders, wants_json
from optillm_hooks.context import Context
from optillm_hooks.errors import SampleError
from optillm_hooks.fanout import finished, outcomes
from optillm_hooks.final_answer import (
    MARK,
    answer_from,
    final_answers,
    groups,
    needs_mark,
    without_mark,
)
from optillm_hooks.judging.decoys import (
    UNTRUSTED,
    Decoys,
    Trust,
    compare,
    decoys_beside,
    trust_in,
)
from optillm_hooks.judging.selection import alike
from optillm_hooks.judging.voting import vote, wants_text
from optillm_hooks.llm import LLM, Effort, FinalCall
from optillm_hooks.merging import merge_requests
from optillm_hooks.prompts import ask, data_notice, enclose, fence
from optillm_hooks.registry import (
    Cost,
    DraftingParams,
    MeasuredParams,
    Result,
    SettlingParams,
    approach,
)
from optillm_hooks.types import Answer, Chat, Completion, Json, Sampling
from optillm_hooks.waves import sureness

EXPLORE = """\
Work this out carefully: say what is asked and what is given, go step by step, name every \
assumption, and check the result before you stop. Answer completely and in the form that is asked \
for."""

ANSWER = "Answer completely and in the form that is asked for."

EXTRACT = """\
Above is an attempt at the request before it. Do not judge it and do not repeat its result. In at \
most ten lines, tell a colleague who works on the same request what there is to learn from it: the \
approach, the ideas that carry it, the techniques, and where it has to be careful."""

ENHANCE = """\
Part 1 above is your own attempt at the request before it; the other parts are strategies that \
colleagues used. Use what helps: look for errors and gaps in your attempt, try another way where \
it is stronger, and write a complete, improved answer, without referring to the parts."""

VERIFY = """\
Above is an answer that somebody gave to the request before it. Check it as a strict examiner: go \
through every step, redo every calculation, and look for errors, for claims without a reason and \
for parts of the request that are not dealt with. Do not correct it.
List each problem with the place where it stands: first the errors that break the answer, then the \
gaps. Then give your verdict alone on the last line, as one of:
VERDICT: CORRECT (complete, and right in all that matters)
VERDICT: INCORRECT (an error breaks it)
VERDICT: INCOMPLETE (no error breaks it, but something is missing or without a reason)"""

IMPROVE = """\
Part 1 above is your answer to the request before it; the other parts are what examiners found. \
Consider every point: correct what is wrong, close the gaps, make clearer what they may have \
misread, and keep what is right. Write the complete improved answer, without referring to the \
parts."""

SYNTHESISE = """\
Above are the best attempts at the request before them, and what examiners found in them; none was \
confirmed. Work out what is right and write one complete answer of its own, in the form that is \
asked for, without referring to the attempts."""

TEMPERATURES: Final = (0.3, 0.6, 1.0)
_VERDICT_LABEL: Final = re.compile(
    r"^(?:\d+[.)])?[^\w\n]{0,12}(?:(?:my|the|final|overall)\s+){0,2}verdict"
    r"(?:[^\w\n]*[:=>\uff1a][^\w\n]*|[^\w\n]*$)\s*",
    re.IGNORECASE | re.MULTILINE,
)
_VERDICT: Final = re.compile(
    r"(?:[^\w\n]|(?:boxed|textbf?)\{)*(?:(?:the\s+solution|it)\s+is\s+)?"
    r"(incorrect|incomplete|correct(?![^\w\n]{1,6}(?:but|except|if|unless|apart|aside)\b))\b"
    r"(?![^\w\n]{1,6}(?:or|correct|incorrect|incomplete)\b)(?![^\S\n]{0,9}\n\s{0,9}(?:which|that|but|as|is)\b)",
    re.IGNORECASE,
)
_MAX_SYNTHESISED: Final = 3

Verdict = Literal["correct", "incorrect", "incomplete"]
RATINGS: Final[Mapping[Verdict, float]] = {"correct": 10.0, "incorrect": 0.0, "incomplete": 0.0}
"""Verdicts as ratings, by which decoys measure the verifier."""


WITHOUT_EFFECT: Final = "use_reasoning_api"
"""An entry of OptiLLM's `mars_config` that is accepted: LiteLLM sends each model what it takes."""


class StrategySwitches(BaseModel):
    """OptiLLM's three switches for the exchange of strategies, which needs all of them on."""

    enable_strategy_network: bool = True
    strategy_extraction_enabled: bool = True
    cross_agent_enhancement: bool = True


class MarsParams(SettlingParams, MeasuredParams, DraftingParams):
    """OptiLLM's parameters, which may also come in one object, `mars_config`."""

    model_group_fields: ClassVar[tuple[str, ...]] = ("models", "judge")
    judge_fields: ClassVar[tuple[str, ...]] = ("judge",)
    body_fields = {"mars_config": "mars_config"}  # noqa: RUF012 (ClassVar of the base)
    samples_field: ClassVar[str] = "num_agents"
    width_fields: ClassVar[tuple[str, ...]] = (
        "population_size",
        "aggregation_loops",
        "max_iterations",
    )

    num_agents: int = Field(default=3, ge=1, le=16, description="Number of agents.")
    models: tuple[str, ...] = Field(
        default=(),
        max_length=16,
        description="Model groups of the agents, in turn; empty: the base model.",
    )
    judge: str | None = Field(
        default=None,
        description="Model group that verifies solutions; unset: the agents verify each other's.",
    )
    max_iterations: int = Field(
        default=5, ge=0, le=16, description="Maximum rounds of improvement."
    )
    verification_passes_required: int = Field(
        default=2, ge=1, le=8, description="Consecutive CORRECT verdicts that confirm a solution."
    )
    max_verification_attempts: int = Field(
        default=3, ge=1, le=16, description="Maximum verifications of one solution."
    )
    consensus_threshold: int = Field(
        default=2,
        ge=1,
        le=16,
        description="Solutions to verify first: those whose final answers are most frequent.",
    )
    min_verified_solutions: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Confirmed solutions needed; until then others are verified, then improved.",
    )
    early_termination: bool = Field(
        default=True, description="Stop when enough solutions are confirmed; off: verify all."
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Maximum tokens of a solution; unset: draft_tokens.",
    )
    enable_aggregation: bool = Field(default=True, description="Merge solutions recursively.")
    population_size: int = Field(default=6, ge=1, le=32, description="N: solutions per loop.")
    aggregation_size: int = Field(
        default=3, ge=1, le=16, description="K: solutions merged into one."
    )
    aggregation_loops: int = Field(default=3, ge=1, le=16, description="T: loops of merging.")
    aggregation_temperature: float = Field(
        default=0.7, ge=0, le=2, description="Temperature of merging."
    )
    enable_strategy_network: bool = Field(
        default=True, description="Let agents exchange their strategies."
    )
    reasoning_effort: Effort | None = Field(
        default=None,
        description="Reasoning effort of solutions, if the model takes one and the client sets "
        "none.",
    )
    use_thinking_tags: bool = Field(
        default=False,
        description="Return the solution as reasoning, and only its final answer as text, if that "
        "can be extracted.",
    )
    answer_extraction_mode: Literal["auto", "math", "code", "none"] = Field(
        default="auto",
        description="With code and none, solutions are not compared by their final answers.",
    )
    lightweight: bool = Field(
        default=False, description="Use small values for parameters that are not given."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_optillm(cls, given: Any) -> Any:
        """Return `given` with the entries of `mars_config`, and one switch instead of three."""
        if not isinstance(given, dict):
            return given
        config = given.get("mars_config")
        if isinstance(config, dict):
            own = {name: v for name, v in config.items() if name != WITHOUT_EFFECT}
            given = {**own, **{name: v for name, v in given.items() if name != "mars_config"}}
        switches = StrategySwitches.model_validate(given).model_dump()
        values = {name: v for name, v in given.items() if name not in switches}
        if "enable_strategy_network" in given or not all(switches.values()):
            values["enable_strategy_network"] = all(switches.values())
        return values

    @model_validator(mode="after")
    def _can_be_confirmed(self) -> "MarsParams":
        if self.max_verification_attempts < self.verification_passes_required:
            raise ValueError(
                "max_verification_attempts must be at least verification_passes_required, got "
                f"{self.max_verification_attempts} and {self.verification_passes_required}"
            )
        return self

    @property
    def exchanges_strategies(self) -> bool:
        return self.enable_strategy_network and self.num_agents > 1

    def narrowed(self, width: int) -> "MarsParams":
        given = self.lighter() if self.lightweight else self
        fewer = super(MarsParams, given).narrowed(width)
        return self if fewer is given else fewer

    def lighter(self) -> "MarsParams":
        """Return the parameters with the values of `LIGHTWEIGHT` where none was given."""
        small = {k: v for k, v in LIGHTWEIGHT.items() if k not in self.model_fields_set}
        lighter = self.model_copy(update=small)
        attempts = max(lighter.max_verification_attempts, lighter.verification_passes_required)
        return lighter.model_copy(update={"max_verification_attempts": attempts})


LIGHTWEIGHT: Final[dict[str, int | bool]] = {
    "num_agents": 2,
    "max_iterations": 2,
    "verification_passes_required": 1,
    "consensus_threshold": 1,
    "max_verification_attempts": 2,
    "enable_aggregation": False,
    "enable_strategy_network": False,
}


def _cost(params: MarsParams) -> Cost:
    if params.lightweight:
        params = params.lighter()
    loops = params.aggregation_loops if params.enable_aggregation else 0
    exchange = params.exchanges_strategies
    merged = params.population_size if loops else params.num_agents
    checked = merged + exchange * params.num_agents
    if params.early_termination:
        checked = min(params.consensus_threshold, checked)
    return Cost(
        calls=params.num_agents * (1 + 2 * exchange)
        + loops * params.population_size
        + checked * params.verification_passes_required
        + 2 * params.decoys,
        depth=2 + max(loops, 2 * exchange),
    )


@dataclass(slots=True, eq=False)
class Solution:
    """A solution with its author, and the verdicts and reports of its verifiers."""

    reply: Completion
    author: int
    verdicts: list[Verdict] = field(default_factory=list[Verdict])
    reports: list[str] = field(default_factory=list[str])
    """The reports of the verdicts other than CORRECT."""

    @property
    def text(self) -> str:
        return without_reasoning(self.reply.text)

    @property
    def passes(self) -> int:
        """The number of consecutive CORRECT verdicts at the end."""
        failed = [at for at, verdict in enumerate(self.verdicts) if verdict != "correct"]
        return len(self.verdicts) - (failed[-1] + 1 if failed else 0)

    @property
    def score(self) -> float:
        """The share of verdicts that are CORRECT."""
        return self.verdicts.count("correct") / len(self.verdicts) if self.verdicts else 0.0

    def add(self, report: str) -> bool:
        """Record a verifier's report, and return whether it has a verdict; else it is ignored."""
        verdict = read_verdict(report)
        if verdict is None:
            return False
        self.verdicts.append(verdict)
        if verdict != "correct":
            self.reports.append(without_reasoning(report))
        return True


def read_verdict(report: str) -> Verdict | None:
    """Return the verdict of the last line that is labelled so; None if it is unclear."""
    said = last_part(report)
    labels = list(_VERDICT_LABEL.finditer(said))
    found = _VERDICT.match(said, labels[-1].end()) if labels else None
    return cast(Verdict, found[1].lower()) if found else None


@approach("mars", MarsParams, cost=_cost)
async def mars(chat: Chat, llm: LLM, params: MarsParams, ctx: Context) -> Result:
    """Return the confirmed solution with the most frequent answer; ties go to the earlier one.

    Without a confirmed solution, the most frequent final answer wins if two or more solutions share
    it. Otherwise a last call writes an answer from the solutions with the best verdicts; if it
    fails, the best of these is returned. If the solution to return is longer than the client's
    `max_tokens`, a last call writes the answer from it. A call that fails loses only its own
    solution, verdict or strategy. The first exploration that calls tools is returned unchanged.

    Raises:
        SamplesFailed: no exploration finished.
    """
    if params.lightweight:
        params = params.lighter()
    team = _Team(chat, llm, params, ctx)
    async with decoys_beside(
        chat, llm, ctx, params.decoys, form=team.form, until=ctx.within(0.3)
    ) as decoys:
        explored = await team.explore()
        calling = [solution for solution in explored if solution.reply.tool_calls]
        if calling:
            return calling[0].reply
        pool = await team.develop(explored)
        ctx.offer(team.shown((await team.ranked(pool))[0]))
        trust = await team.check_best(pool, decoys)
    if trust == "chance":
        ctx.trace.doubt(UNTRUSTED)
        return await team.vote(pool if params.judge else explored)
    for number in range(1, params.max_iterations + 1):
        if team.count_confirmed(pool) >= params.min_verified_solutions:
            break
        ctx.progress(f"improving, round {number} of up to {params.max_iterations}")
        improved = await team.improve(pool, number * params.num_agents)
        if not improved:
            break
        pool = [improved.get(at, solution) for at, solution in enumerate(pool)]
        await team.check(list(improved.values()))
    return await team.conclude(pool)


@dataclass(frozen=True, slots=True)
class _Team:
    """The agents of one request, by number. They differ in temperature and maybe in model."""

    chat: Chat
    llm: LLM
    params: MarsParams
    ctx: Context

    async def explore(self) -> list[Solution]:
        """Return the agents' independent solutions."""
        agents = range(self.params.num_agents)
        self.ctx.progress(f"{len(agents)} agents explore")
        found = await finished(
            [
                self._writing(
                    agent,
                    ANSWER if self._reasons(agent) else EXPLORE,
                    _temperature(agent),
                    agent,
                )
                for agent in agents
            ],
            until=self.ctx.within(0.3),
        )
        self.ctx.trace.note("explored", asked=len(agents), finished=len(found))
        self.ctx.trace.count("explorations", lost=len(agents) - len(found), of=len(agents))
        return found

    async def develop(self, explored: Sequence[Solution]) -> list[Solution]:
        """Return the last population, followed by the solutions improved by strategies.

        Explorations that agree are developed no further, if that settles the answer.
        """
        settled = sureness(len(explored), 0) >= self.params.confidence
        if settled and len(explored) == self.params.num_agents and await self._agree(explored):
            loops = self.params.aggregation_loops if self.params.enable_aggregation else 0
            exchanged = 2 * len(explored) * self._exchanges_strategies()
            self.ctx.trace.save(loops * self.params.population_size + exchanged)
            return list(explored)
        branches: list[Callable[[], Awaitable[list[Solution]]]] = []
        # Each branch has its own rng, because they run concurrently.
        if self.params.enable_aggregation:
            branches.append(partial(self._aggregate, explored, self.ctx.child(1).rng))
        if self._exchanges_strategies() and len(explored) > 1:
            branches.append(partial(self._exchange, explored, self.ctx.child(2).rng))
        made = await finished(branches, at_least=len(branches))
        population = [] if self.params.enable_aggregation else list(explored)
        return [*population, *(solution for branch in made for solution in branch)]

    async def _aggregate(self, explored: Sequence[Solution], rng: Random) -> list[Solution]:
        """Return the population after the last loop that did not fail."""
        params = self.params
        population = list(explored)
        loops = 0
        for loop in range(params.aggregation_loops):
            left = params.aggregation_loops - loop
            self.ctx.progress(f"merging solutions, loop {loop + 1} of {params.aggregation_loops}")
            requests = merge_requests(
                self.chat,
                [solution.text for solution in population],
                rng,
                count=params.population_size,
                size=params.aggregation_size,
            )
            calls = [
                self._writing(
                    number % params.num_agents,
                    request,
                    params.aggregation_temperature,
                    loop * params.population_size + number,
                )
                for number, request in enumerate(requests)
            ]
            merged = await self._written(calls, "merges", until=self.ctx.within(0.7 / left))
            if not merged:
                break
            population = merged
            loops += 1
            if len(merged) == params.population_size > 1 and await self._agree(merged):
                self.ctx.trace.save((left - 1) * params.population_size)
                break
        self.ctx.trace.note("merged", loops=loops, population=len(population))
        return population

    async def _exchange(self, explored: Sequence[Solution], rng: Random) -> list[Solution]:
        """Return each solution improved by its author with the strategies of up to two others."""
        requests = [self._framed([s.text], "attempt", EXTRACT) for s in explored]
        ended = await outcomes(
            [
                partial(
                    self._agent(solution.author).complete,
                    ask(self.chat, request),
                    Sampling(temperature=0.3, purpose="judge"),
                )
                for solution, request in zip(explored, requests, strict=True)
            ],
            until=self.ctx.within(0.3),
        )
        strategies = {
            at: text
            for at, outcome in enumerate(ended)
            if not isinstance(outcome, SampleError) and (text := without_reasoning(outcome.text))
        }
        self.ctx.trace.count("strategies", lost=len(ended) - len(strategies), of=len(ended))
        calls = []
        for at, solution in enumerate(explored):
            others = [text for other, text in strategies.items() if other != at]
            if others:
                peers = rng.sample(others, min(2, len(others)))
                request = self._framed([solution.text, *peers], "part", ENHANCE)
                temperature = 0.9 * _temperature(solution.author)
                calls.append(self._writing(solution.author, request, temperature, at))
        enhanced = await self._written(calls, "enhancements", until=self.ctx.within(0.6))
        self.ctx.trace.note("strategies", extracted=len(strategies), enhanced=len(enhanced))
        return enhanced

    async def check_best(self, pool: Sequence[Solution], decoys: Decoys) -> Trust:
        """Verify the best supported solutions, then the others if too few are confirmed.

        Decoys are verified beside the first; what they show of the verifier is returned.
        """
        ranked = await self.ranked(pool)
        first = self.params.consensus_threshold if self.params.early_termination else len(ranked)
        shown = list[float | None]()

        async def measure() -> None:
            shown.extend(await self._verified(decoys, pool))

        beside: list[Callable[[], Awaitable[None]]] = [partial(self.check, ranked[:first]), measure]
        await outcomes(beside)
        trust = self._trust(ranked[:first], shown)
        if trust != "chance" and self.count_confirmed(pool) < self.params.min_verified_solutions:
            await self.check(ranked[first:])
        self.ctx.trace.note("checked", solutions=len(pool), confirmed=self.count_confirmed(pool))
        return trust

    async def _verified(self, decoys: Decoys, pool: Sequence[Solution]) -> list[float | None]:
        """Return one verdict on each decoy, as a rating; None where there is none."""
        texts = [solution.reply.text for solution in pool]
        same = await groups(await final_answers(texts, self.chat, self.ctx), self.ctx)
        wrong = await alike(await decoys.written(), same, self.chat, self.ctx)
        ended = await outcomes(
            [self._examination(text, number, 0) for number, text in enumerate(wrong)],
            until=self.ctx.within(0.5),
        )
        verdicts = [None if isinstance(e, SampleError) else read_verdict(e.text) for e in ended]
        self.ctx.trace.count("verdicts", lost=verdicts.count(None), of=len(verdicts))
        return [None if verdict is None else RATINGS[verdict] for verdict in verdicts]

    def _trust(self, checked: Sequence[Solution], decoys: Sequence[float | None]) -> Trust:
        """Return what first verdicts on solutions, and verdicts on decoys, show of the verifier."""
        verdicts = [RATINGS[solution.verdicts[0]] for solution in checked if solution.verdicts]
        verifier = self.params.judge or self._agent(0).model
        record = compare(verdicts, decoys)
        return trust_in(f"{verifier} verdicts", self.llm.model, record, self.ctx)

    def _examination(
        self, text: str, verifier: int, sample: int
    ) -> Callable[[], Awaitable[Completion]]:
        """Return the call in which the judge, or else the agent `verifier`, examines a solution."""
        judge = self.params.judge
        llm = self._agent(verifier) if judge is None else self.ctx.llm(judge)
        asked = ask(self.chat, self._framed([text], "answer", VERIFY))
        sampling = Sampling(temperature=0.1, purpose="judge", sample=sample)
        return partial(llm.complete, asked, sampling)

    async def check(self, solutions: Sequence[Solution]) -> None:
        """Verify each of `solutions` until it is confirmed or no longer can be."""
        if solutions:
            self.ctx.progress(f"checking {len(solutions)} solutions")
            await outcomes([partial(self._verify, solution) for solution in solutions])

    async def _verify(self, solution: Solution) -> None:
        """Add verdicts by agents other than the author, or by the author if there is no other.

        The verdicts that a confirmation still needs are requested concurrently. A verdict that
        fails or cannot be read uses up an attempt, but does not count.
        """
        params = self.params
        others = [a for a in range(params.num_agents) if a != solution.author] or [solution.author]
        made = 0
        while (missing := params.verification_passes_required - solution.passes) > 0:
            if made + missing > params.max_verification_attempts:
                return
            ended = await outcomes(
                [
                    self._examination(solution.text, others[number % len(others)], number)
                    for number in range(made, made + missing)
                ],
                until=self.ctx.within(0.5),
            )
            made += missing
            read = [not isinstance(said, SampleError) and solution.add(said.text) for said in ended]
            self.ctx.trace.count("verdicts", lost=read.count(False), of=len(read))

    async def improve(self, pool: Sequence[Solution], first: int) -> dict[int, Solution]:
        """Return new versions of the best solutions that are not confirmed, by index in `pool`.

        At most as many as there are agents, each by its author from all reports on it. They are
        numbered from `first`: a solution that came back as it was gets another sample.
        """
        failed = [s for s in await self.ranked(pool) if s.reports and not self.is_confirmed(s)]
        chosen = failed[: self.params.num_agents]
        ended = await outcomes(
            [
                self._writing(
                    solution.author,
                    self._framed([solution.text, *solution.reports], "part", IMPROVE),
                    0.8 * _temperature(solution.author),
                    number,
                )
                for number, solution in enumerate(chosen, first)
            ],
            until=self.ctx.within(0.5),
        )
        improved = {
            pool.index(solution): outcome
            for solution, outcome in zip(chosen, ended, strict=True)
            if not isinstance(outcome, SampleError) and not outcome.reply.tool_calls
        }
        self.ctx.trace.count("improvements", lost=len(ended) - len(improved), of=len(ended))
        return improved

    def is_confirmed(self, solution: Solution) -> bool:
        return solution.passes >= self.params.verification_passes_required

    def count_confirmed(self, pool: Sequence[Solution]) -> int:
        return sum(map(self.is_confirmed, pool))

    async def ranked(self, pool: Sequence[Solution]) -> list[Solution]:
        """Return `pool` with complete solutions first, then by support; ties keep their order."""
        support = await self._support(pool)
        order = sorted(
            range(len(pool)), key=lambda at: (pool[at].reply.truncated, -support[at], at)
        )
        return [pool[at] for at in order]

    async def _support(self, pool: Sequence[Solution]) -> list[int]:
        """Return for each solution how many share its final answer; 0 if it cannot be read."""
        mode = self.params.answer_extraction_mode
        if mode in ("code", "none") or (mode == "auto" and wants_text(self.chat, self.ctx)):
            return [0] * len(pool)
        texts = [solution.reply.text for solution in pool]
        same = await groups(await final_answers(texts, self.chat, self.ctx), self.ctx)
        sizes = Counter(at for at in same if at is not None)
        return [0 if at is None else sizes[at] for at in same]

    async def _agree(self, solutions: Sequence[Solution]) -> bool:
        """Return whether all of `solutions` are complete and have the same final answer."""
        whole = not any(solution.reply.truncated for solution in solutions)
        return whole and set(await self._support(solutions)) == {len(solutions)}

    async def vote(self, solutions: Sequence[Solution]) -> Result:
        """Return the solution with the most frequent final answer, whatever verifiers say."""
        replies = contenders([solution.reply for solution in solutions])
        return await self._presented(await vote(replies, self.chat, self.llm, self.ctx))

    async def conclude(self, pool: Sequence[Solution]) -> Result:
        """Return the confirmed solution, else the vote's, else a call that writes the answer."""
        ranked = await self.ranked(pool)
        support = max(await self._support(pool))
        confirmed = [solution for solution in ranked if self.is_confirmed(solution)]
        by = "verification" if confirmed else "vote" if support > 1 else "synthesis"
        self.ctx.trace.note(
            "concluded", by=by, solutions=len(pool), confirmed=len(confirmed), support=support
        )
        best = (confirmed or ranked)[0]
        if by != "synthesis" or len(pool) == 1:
            return await self._presented(best.reply)
        shown = sorted(ranked, key=lambda solution: -solution.score)[:_MAX_SYNTHESISED]
        fallback = self.shown(shown[0])
        self.ctx.offer(fallback)
        self.ctx.progress("writing the answer")
        attempts = [solution.text for solution in shown]
        findings = [report for solution in shown for report in solution.reports]
        mark = fence(self.chat, [*attempts, *findings])
        request = _framed(findings, "finding", SYNTHESISE, mark)
        request = _framed(attempts, "attempt", request, mark)
        return FinalCall(ask(self.chat, request), Sampling(temperature=0.3), fallback=fallback)

    def _framed(self, texts: Sequence[str], label: str, request: str) -> str:
        return _framed(texts, label, request, fence(self.chat, texts))

    async def _presented(self, reply: Completion) -> Result:
        if self.params.use_thinking_tags and not wants_json(self.ctx.client):
            [final] = await final_answers([reply.text], self.chat, self.ctx)
            if final is not None:
                return Answer(final, reply.finish_reason, reasoning=reply.text)
        return answer_from(self.chat, self._unmarked(reply), self.llm, self.ctx)

    def shown(self, solution: Solution) -> Completion:
        """Return a solution as the user sees it, if it is the answer as it is."""
        return self.ctx.bounded(self._unmarked(solution.reply), self.llm.facts)

    def _unmarked(self, reply: Completion) -> Completion:
        return without_mark(reply) if self._is_marked() else reply

    @property
    def form(self) -> str:
        """What is added to requests for solutions."""
        return f"\n\n{MARK}" if self._is_marked() else ""

    def _is_marked(self) -> bool:
        return needs_mark(self.chat, self.ctx)

    def _exchanges_strategies(self) -> bool:
        """Whether the agents exchange strategies: not if all of them find theirs by reasoning."""
        reason = all(self._reasons(agent) for agent in range(self.params.num_agents))
        return self.params.exchanges_strategies and not reason

    def _reasons(self, agent: int) -> bool:
        llm = self._agent(agent)
        return self.ctx.reasons(llm, self._effort(llm))

    def _agent(self, number: int) -> LLM:
        models = self.params.models
        return self.ctx.llm(models[number % len(models)]) if models else self.llm

    def _writing(
        self, agent: int, request: str, temperature: float, sample: int
    ) -> Callable[[], Awaitable[Solution]]:
        """Return the call in which `agent` writes a solution."""
        llm = self._agent(agent)
        sampling = Sampling(
            temperature=temperature,
            max_tokens=self.params.max_tokens,
            purpose="solution",
            sample=sample,
            fields=self._effort(llm),
        )

        async def write() -> Solution:
            return Solution(
                await llm.complete(ask(self.chat, f"{request}{self.form}"), sampling), agent
            )

        return write

    async def _written(
        self, calls: Sequence[Callable[[], Awaitable[Solution]]], kind: str, *, until: float
    ) -> list[Solution]:
        """Return the solutions that were written, without those that call tools. Never fails."""
        ended = await outcomes(calls, until=until)
        written = [
            outcome
            for outcome in ended
            if not isinstance(outcome, SampleError) and not outcome.reply.tool_calls
        ]
        self.ctx.trace.count(kind, lost=len(ended) - len(written), of=len(ended))
        return written

    def _effort(self, llm: LLM) -> Mapping[str, Json]:
        effort = self.params.reasoning_effort
        if (
            effort is None
            or "reasoning_effort" in self.ctx.client.fields
            or not llm.facts.supports("reasoning_effort")
        ):
            return {}
        return {"reasoning_effort": effort}


def _temperature(agent: int) -> float:
    return TEMPERATURES[agent % len(TEMPERATURES)]


def _framed(texts: Sequence[str], label: str, request: str, mark: str) -> str:
    """Return `texts` as data, if there are any, and then `request`."""
    if not texts:
        return request
    return f"{data_notice(label, mark)}\n\n{enclose(texts, label, mark)}\n\n{request}"
