"""MARS: agents explore, merge and exchange what they found, and check each other until it holds.

Source: Venkatraman et al. 2025, "Recursive Self-Aggregation Unlocks Deep Thinking in Large
Language Models", arXiv:2509.26626, section 3 (a population of N solutions, N of which are made
anew in each of T loops from random subsets of K), and Huang and Yang 2025, "Gemini 2.5 Pro Capable
of Winning Gold at IMO 2025", arXiv:2507.15855, section 3 (a verifier's report, improvement from
it, acceptance after passes in a row). Between them agents tell each other their strategies, and a
solution is never checked by its author. Deviations: aggregation and the exchange of strategies run
at once, since neither needs the other; solutions are checked in the order of how many others share
their final answer, and only until enough of them hold; agents differ in temperature and, if models
are named, in model. The first of the papers ends with a vote; here it decides what the verifiers
leave open.
Cost: at best `num_agents` explorations, `aggregation_loops * population_size` aggregations beside
`2 * num_agents` calls for strategies, and `consensus_threshold * verification_passes_required`
verifications: 31 calls, 5 deep. Each round of improvement adds up to
`num_agents * (1 + max_verification_attempts)` calls, 2 or more deep.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any, ClassVar, Final, Literal

from pydantic import Field, model_validator

from optillm_hooks.answers import extract_answer, without_reasoning
from optillm_hooks.context import Context
from optillm_hooks.errors import SampleError, SamplesFailed
from optillm_hooks.fanout import finished, outcomes
from optillm_hooks.llm import LLM, FinalCall
from optillm_hooks.prompts import ask, data_notice, enclose, fence, question
from optillm_hooks.registry import Cost, Params, Result, approach
from optillm_hooks.types import Answer, Chat, Completion, Json, Sampling
from optillm_hooks.voting import shares

MARK = """\
Put the final answer, if there is one, alone on the last line, as: ANSWER: <answer>"""

EXPLORE = """\
Work this out carefully: say what is asked and what is given, go step by step, name every \
assumption, and check the result before you stop. Answer completely and in the form that is asked \
for."""

AGGREGATE = """\
Above are {count} attempts at the request before them. Any of them may be wrong, and all may be. \
Decide where they disagree by working it out, keep what is right and useful in each, or start anew \
if none holds. Write one complete answer that is better than each of them, with all its steps, and \
without referring to them."""

EXTRACT = """\
Above is an attempt at the request before it. Do not judge it and do not repeat its result. In at \
most ten lines, tell a colleague who works on the same request what there is to learn from it: the \
approach, the ideas that carry it, the techniques, and where it has to be careful."""

ENHANCE = """\
Part 1 above is your own attempt at the request before it; the other parts are strategies that \
colleagues used. Use what helps: look for errors and gaps in your attempt, try another way where it \
is stronger, and write a complete, improved answer, without referring to the parts."""

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
_VERDICT: Final = re.compile(
    r"^[\s>*_#`-]*verdict[\s*_`]*[:=][\s*_`]*(correct|incorrect|incomplete)\b",
    re.IGNORECASE | re.MULTILINE,
)
_MOST_SYNTHESISED: Final = 3
_LIGHT_TOKENS: Final = 4000

Verdict = Literal["correct", "incorrect", "incomplete"]


class MarsParams(Params):
    """OptiLLM's names, also together in an object `mars_config`."""

    model_fields_named: ClassVar[tuple[str, ...]] = ("models",)
    body_fields = {"mars_config": "mars_config"}  # noqa: RUF012 (ClassVar of the base)

    num_agents: int = Field(default=3, ge=1, le=16, description="Agents that explore.")
    models: tuple[str, ...] = Field(
        default=(), max_length=16, description="Model groups of the agents, in turn; empty: base."
    )
    max_iterations: int = Field(default=5, ge=0, le=16, description="Rounds of improvement.")
    verification_passes_required: int = Field(
        default=2, ge=1, le=8, description="Verdicts CORRECT in a row that confirm a solution."
    )
    max_verification_attempts: int = Field(
        default=3, ge=1, le=16, description="Verifications of one solution at most."
    )
    consensus_threshold: int = Field(
        default=2, ge=1, le=16, description="Confirmed solutions after which checking stops."
    )
    min_verified_solutions: int = Field(
        default=1, ge=1, le=16, description="Confirmed solutions below which others are improved."
    )
    early_termination: bool = Field(
        default=True, description="Stop checking at the threshold, instead of checking all."
    )
    max_tokens: int | None = Field(
        default=None, ge=1, description="Most tokens of a solution; unset: as the client says."
    )
    enable_aggregation: bool = Field(default=True, description="Merge solutions recursively.")
    population_size: int = Field(default=6, ge=1, le=32, description="N: solutions per loop.")
    aggregation_size: int = Field(default=3, ge=1, le=16, description="K: solutions merged in one.")
    aggregation_loops: int = Field(default=3, ge=1, le=16, description="T: loops of merging.")
    aggregation_temperature: float = Field(
        default=0.7, ge=0, le=2, description="Temperature of merging."
    )
    enable_strategy_network: bool = Field(
        default=True, description="Have agents tell each other their strategies."
    )
    strategy_extraction_enabled: bool = Field(
        default=True, description="Off: there is nothing to tell, so no strategies are exchanged."
    )
    cross_agent_enhancement: bool = Field(
        default=True, description="Off: nobody would use them, so no strategies are exchanged."
    )
    use_reasoning_api: bool = Field(
        default=True,
        description="Ask for reasoning effort by temperature (low to 0.4, medium to 0.8, high) "
        "where the model takes it and the client does not say otherwise.",
    )
    use_thinking_tags: bool = Field(
        default=False,
        description="Give the solution as reasoning, and as text only its final answer, if it has "
        "one that can be read.",
    )
    answer_extraction_mode: Literal["auto", "math", "code", "none"] = Field(
        default="auto",
        description="code and none: solutions are not compared by their final answers.",
    )
    lightweight: bool | None = Field(
        default=None,
        description="Take the small values of what is not given; unset: if the client's max_tokens "
        "is at most 4000.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_config(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("mars_config"), dict):
            return given
        config = given["mars_config"]
        return {**config, **{name: v for name, v in given.items() if name != "mars_config"}}

    @property
    def exchanges_strategies(self) -> bool:
        return (
            self.enable_strategy_network
            and self.strategy_extraction_enabled
            and self.cross_agent_enhancement
            and self.num_agents > 1
        )

    def lighter(self) -> "MarsParams":
        """Return the parameters with the small values where none was given."""
        small = {k: v for k, v in LIGHTWEIGHT.items() if k not in self.model_fields_set}
        return self.model_copy(update=small)


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
    checked = params.consensus_threshold * params.verification_passes_required
    return Cost(
        calls=params.num_agents * (1 + 2 * exchange) + loops * params.population_size + checked,
        depth=2 + max(loops, 2 * exchange),
    )


@dataclass(slots=True)
class Solution:
    """A solution, who wrote it, and what the others found in it."""

    reply: Completion
    author: int
    verdicts: list[Verdict] = field(default_factory=list[Verdict])
    reports: list[str] = field(default_factory=list[str])
    """Of the verdicts that are not CORRECT."""

    def passes(self) -> int:
        """Return how many of the last verdicts in a row are CORRECT."""
        run = 0
        for verdict in reversed(self.verdicts):
            if verdict != "correct":
                break
            run += 1
        return run

    @property
    def score(self) -> float:
        """The share of verdicts that are CORRECT."""
        return self.verdicts.count("correct") / len(self.verdicts) if self.verdicts else 0.0


def read_verdict(report: str) -> Verdict | None:
    """Return the verdict of the last line that gives one, or None; prose gives none."""
    found = _VERDICT.findall(without_reasoning(report))
    verdict: Verdict | None = found[-1].lower() if found else None
    return verdict


@approach("mars", MarsParams, cost=_cost)
async def mars(chat: Chat, llm: LLM, params: MarsParams, ctx: Context) -> Result:
    """Return the confirmed solution that most solutions agree with; ties go to the earlier one.

    Without a confirmed solution, the final answer that two or more solutions share decides, and
    the first of them is returned; without that, a last call writes an answer from the solutions
    with the best verdicts, and the best of them is what is left if it fails. A call that fails
    takes only its own solution, verdict or strategy with it. An exploration that calls tools is
    returned as it is (the first one).

    Raises:
        SamplesFailed: no exploration finished.
    """
    small = (ctx.client.max_tokens or _LIGHT_TOKENS + 1) <= _LIGHT_TOKENS
    if small if params.lightweight is None else params.lightweight:
        params = params.lighter()
    team = _Team(chat, llm, params, ctx)
    explored = await team.explore()
    calling = [solution for solution in explored if solution.reply.tool_calls]
    if calling:
        return calling[0].reply
    pool = _whole(await team.develop(explored))
    ctx.offer(team.ranked(pool)[0].reply)
    confirmed = await team.confirmed(pool)
    for round_number in range(1, params.max_iterations + 1):
        if len(confirmed) >= params.min_verified_solutions:
            break
        improved = await team.improve(pool, confirmed, round_number)
        if not improved:
            break
        pool = [*(s for s in pool if s not in improved.values()), *improved]
    return team.conclude(pool, confirmed)
