"""Round-trip optimization: answer with code, describe it, write it again from that, merge the two.

Good for: answers that can be checked.
Worth it when: the answer is code that a description can reproduce; otherwise a vote is better.
Source: Allamanis et al. 2024, "Unsupervised Evaluation of Code LLMs with Round-Trip Correctness",
arXiv:2402.08699, and Sharma 2024, "Patched RTC", arXiv:2407.16557. Both use the round trip to
measure a model; here its second version improves the first. Deviations: one round trip of one
sample; the call that merges the versions also judges whether they are equivalent, so that the
judgement costs no extra call. The description is made from the first answer alone, never from the
question. An answer without code, and one in JSON mode, makes no round trip.
On reasoning models: the same. No prompt tells the model how to think.
Cost: at most 4 calls, 4 deep; 3 if both versions contain the same code; 1 if the answer has none.
"""

from pydantic import Field

from optillm_hooks.answers.code_blocks import code_blocks, holds_code
from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.answers.voting import wants_json
from optillm_hooks.context import Context
from optillm_hooks.errors import EmptyCompletion, SampleError, UnusableReply
from optillm_hooks.judging.verdicts import says
from optillm_hooks.llm import LLM
from optillm_hooks.prompts import ask, data_notice, enclose, fence
from optillm_hooks.registry import Cost, DraftingParams, approach
from optillm_hooks.types import Answer, Chat, Completion, Message, Sampling

DESCRIBE = """\
Describe the work below as a request from which somebody who has never seen it could make it again
exactly. Say what it must do: every file, function, input, output, limit, format and odd case. Do
not quote it and do not judge it. Reply with the request only."""

SAME = "EQUIVALENT"
_MAX_CODE = 100_000
"""Maximum length of a version of which only the code is compared."""

MERGE = f"""\
Below are two versions of an answer to the request above. Compare what they do, case by case.
If both do the same in every case, reply with the single word {SAME}.
Otherwise reply with one final answer to the request, complete, with every file and explanation it
needs: keep what is right in either version, and mention neither."""


class RtoParams(DraftingParams):
    temperature: float | None = Field(
        default=None,
        ge=0,
        le=2,
        description="Temperature of the two versions and the description; unset: the client's.",
    )


@approach("rto", RtoParams, cost=lambda _: Cost(calls=4, depth=4))
async def rto(chat: Chat, llm: LLM, params: RtoParams, ctx: Context) -> Answer:
    """Return the merged answer of two versions, or the first if they are equivalent.

    The first version is also returned if it has no code, calls tools or is truncated, or if a later
    call fails or is truncated: the round trip can only improve it.

    Raises:
        SampleError: the first answer failed.
    """
    first = await llm.complete(chat, Sampling(temperature=params.temperature))
    if first.tool_calls or first.truncated:
        return first
    if wants_json(ctx.client) or not holds_code(without_reasoning(first.text)[:_MAX_CODE]):
        ctx.trace.note("round_trip", code=False)
        ctx.trace.save(3)
        return first
    try:
        second = await _remade(chat, first, llm, params, ctx)
        if code_of(first.text) == code_of(second.text):
            ctx.trace.note("round_trip", equal=True)
            return first
        with ctx.trace.step("merges"):
            merged = _whole(await llm.complete(_merging(chat, first, second, ctx), Sampling()))
    except SampleError as failure:
        ctx.trace.note("round_trip", failed=type(failure).__name__)
        return first
    equivalent = says(SAME, merged.text)
    ctx.trace.note("round_trip", equal=False, judged_equivalent=equivalent)
    return first if equivalent else merged


async def _remade(
    chat: Chat, first: Completion, llm: LLM, params: RtoParams, ctx: Context
) -> Completion:
    """Return the answer to a description of `first`; the question itself is not shown.

    Raises:
        SampleError: one of the two calls failed, the description is empty, or the answer is
            truncated.
    """
    work = [without_reasoning(first.text)]
    mark = fence((), work)
    request = f"{DESCRIBE}\n{data_notice('work', mark)}\n\n{enclose(work, 'work', mark)}"
    draft = Sampling(temperature=params.temperature, purpose="draft")
    with ctx.trace.step("descriptions"):
        reply = await llm.complete((Message("user", request),), draft)
        description = without_reasoning(reply.text)
        if not description:
            raise EmptyCompletion
    ctx.progress("second version from a description")
    rules = tuple(message for message in chat if message.role in ("system", "developer"))
    again = (*rules, Message("user", description))
    with ctx.trace.step("versions"):
        return _whole(await llm.complete(again, draft))


def _whole(reply: Completion) -> Completion:
    """Return `reply`.

    Raises:
        UnusableReply: it is truncated.
    """
    if reply.truncated:
        raise UnusableReply("the reply was cut off")
    return reply


def _merging(chat: Chat, first: Completion, second: Completion, ctx: Context) -> Chat:
    versions = [without_reasoning(first.text), without_reasoning(second.text)]
    ctx.rng.shuffle(versions)
    mark = fence(chat, versions)
    shown = enclose(versions, "version", mark)
    return ask(chat, f"{MERGE}\n{data_notice('version', mark)}\n\n{shown}")


def code_of(text: str) -> list[str]:
    """Return the contents of the closed code blocks of `text`, or all of it if there are none.

    Blanks at the ends of lines are left out. Two versions with the same code are the same answer.
    """
    text = without_reasoning(text)
    blocks = code_blocks(text) if len(text) <= _MAX_CODE else []
    contents = [block.content for block in blocks if block.closed]
    return [
        "\n".join(line.rstrip() for line in content.strip().splitlines())
        for content in contents or [text]
    ]
