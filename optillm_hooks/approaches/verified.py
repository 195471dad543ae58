"""Verified: sample answers until one passes verifiers; return it, or else the best.

Verifiers check answers by other means than a model's opinion: `tests` runs a program on the tests
in the request, `sympy` solves an equation or arithmetic that the request consists of, `z3` checks
answers against constraints that the model writes once, `http` asks an endpoint of the operator's;
these can prove an answer. `schema` (the request's `response_format`, or a parameter), `regex` and
`calculator` (claims such as "12 * 34 = 408") check only its form or its parts. `auto` is all that
apply and cost no model call, so not `z3`. An answer passes if a verifier passes it and none fails
it. The first that is proven is returned at once. Without proofs, answers that pass vote; if none
passes, the one with the highest score is returned, and `degraded` says `verified_answers:1/1`. If
no verifier applies, it is a vote.

Good for: answers that can be checked.
Worth it when: answers can be checked: programs with tests, equations, a form, or an endpoint that
knows.
Source: Cobbe et al. 2021, arXiv:2110.14168 (sample and verify); Brown et al. 2024, "Large Language
Monkeys", arXiv:2407.21787 (with a verifier that is right, the share of solved problems is that of
problems with one right sample). Deviation: two waves instead of all samples at once. The first has
about the square root of `n` samples, which costs fewest calls where nothing is known of how often
the model is right.
On reasoning models: the same. What is verified is the answer without its reasoning.
Cost: at most `n` calls, at most 2 deep; one more call, beside the first ones, for `z3`. Where the
model is right with probability p, `f + (n - f)(1 - p)^f` calls, with f in the first wave.
"""

from pydantic import Field

from optillm_hooks.context import Context
from optillm_hooks.llm import LLM
from optillm_hooks.registry import Cost, DraftingParams, SamplerParams, approach
from optillm_hooks.types import Answer, Chat, Sampling
from optillm_hooks.verifiers.panel import panel_for
from optillm_hooks.verifiers.params import VerifyingParams
from optillm_hooks.verifiers.sampling import sample_until_verified
from optillm_hooks.waves import panel_of


class VerifiedParams(SamplerParams, VerifyingParams, DraftingParams):
    n: int = Field(default=8, ge=1, le=64, description="Maximum number of answers to sample.")
    temperature: float = Field(
        default=1.0, gt=0, le=2, description="Answers must differ, so 0 is not allowed."
    )


def _cost(params: VerifiedParams) -> Cost:
    return Cost(calls=params.n + ("z3" in params.verifiers), depth=1 + (params.n > 1))


@approach("verified", VerifiedParams, cost=_cost, needs=["code", "solver", "network"])
async def verified(chat: Chat, llm: LLM, params: VerifiedParams, ctx: Context) -> Answer:
    """Return the first answer that is proven, or else the best one; see `sample_until_verified`.

    Raises:
        Refused: `pattern` or `json_schema` is not valid.
        SamplesFailed: no sample finished within the request's deadline and budget.
    """
    writers, sampling = panel_of(params.models, llm, ctx), Sampling(temperature=params.temperature)
    async with panel_for(params.verifiers, params.asked(chat, llm, ctx)) as panel:
        return await sample_until_verified(writers, panel, sampling, params, n=params.n)
