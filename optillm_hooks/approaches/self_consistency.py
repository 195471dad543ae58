"""Self-consistency: sample independent reasoning paths, return the most frequent answer.

Source: Wang et al. 2022, "Self-Consistency Improves Chain of Thought Reasoning in Language
Models", arXiv:2203.11171, section 2 (unweighted majority over final answers); for free text, Chen
et al. 2023, "Universal Self-Consistency for Large Language Model Generation", arXiv:2311.17311,
section 3. Deviations: answers are equal if they are equivalent, not only if the strings are equal;
tool calls and JSON are voted on as such; the model that chooses among free texts sees the paths in
random order.
Cost: `n` calls, all concurrent; the latency is that of the slowest path. If no path has a readable
answer, as in free text, one more call asks which path agrees most with the others.
"""

from pydantic import Field

from optillm_hooks.answers.extraction import AnswerFormat
from optillm_hooks.answers.voting import contenders, elect, wants_json
from optillm_hooks.context import Context
from optillm_hooks.fanout import sample_many
from optillm_hooks.judging import MOST_CONSISTENT, choose
from optillm_hooks.llm import LLM
from optillm_hooks.prompts import instruct, question
from optillm_hooks.registry import Cost, DraftingParams, approach
from optillm_hooks.types import Answer, Chat, Sampling

INSTRUCTION = """\
Reason step by step. If the last message has one definite answer, put it alone on the last line, as:
ANSWER: <answer>"""


class SelfConsistencyParams(DraftingParams):
    n: int = Field(default=5, ge=1, le=64, description="Reasoning paths to sample.")
    temperature: float = Field(
        default=0.7, gt=0, le=2, description="Paths must differ to vote, so 0 is not allowed."
    )
    answer_format: AnswerFormat = Field(
        default="auto", description="How the final answer is read from a path."
    )


@approach(
    "self_consistency", SelfConsistencyParams, cost=lambda params: Cost(calls=params.n, depth=1)
)
async def self_consistency(
    chat: Chat, llm: LLM, params: SelfConsistencyParams, ctx: Context
) -> Answer:
    """Return the first path that reaches the most frequent final answer.

    A path that failed, was truncated while others were not, or has no readable answer does not
    vote. Ties go to the answer that comes first in the order of the calls, so the result does not
    depend on which reply arrives first. Without any readable answer, the model is asked which path
    agrees most with the others; if its choice cannot be read, the first path is returned.

    Raises:
        SamplesFailed: no path finished within the request's deadline and budget.
    """
    as_json = wants_json(ctx.client)
    asked = chat if as_json else instruct(chat, INSTRUCTION)
    sampled = await sample_many(
        llm, asked, Sampling(temperature=params.temperature), ctx, n=params.n
    )
    paths = contenders(sampled)
    tally = elect(paths, params.answer_format, question=question(chat), as_json=as_json)
    ctx.trace.note(
        "vote",
        asked=params.n,
        finished=len(sampled),
        voters=len(paths),
        votes=list(tally.votes.values()),
    )
    texts = [path.text.strip() for path in paths]
    if tally.votes or paths[0].tool_calls or len(set(texts)) == 1:
        return paths[tally.winner]
    ctx.progress("choosing the answer that agrees most with the others")
    chosen = await choose(texts, chat, llm, ctx, criterion=MOST_CONSISTENT)
    ctx.trace.note("choice", readable=chosen.winner is not None)
    return paths[chosen.winner or 0]
