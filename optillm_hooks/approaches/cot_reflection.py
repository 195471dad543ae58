"""CoT reflection: the model thinks, checks its thinking, and only then answers, in one call.

Good for: a single call.
Worth it when: the model does not reason by itself, and one call has to do.
Source: Madaan et al. 2023, "Self-Refine", arXiv:2303.17651, and Shinn et al. 2023, "Reflexion",
arXiv:2303.11366, give the idea of a model that criticises its own draft; to do so within one reply
is common practice and follows no paper.
Deviation: a model that reasons by itself gets the request unchanged.
Cost: one call, streamed from the first word of the answer.
"""

from dataclasses import replace
from functools import partial

from pydantic import Field

from optillm_hooks.answers.section_filter import SectionFilter
from optillm_hooks.context import Context
from optillm_hooks.llm import LLM, FinalCall
from optillm_hooks.prompts import instruct
from optillm_hooks.registry import Cost, Params, approach
from optillm_hooks.types import Chat, Sampling

INSTRUCTION = """\
Answer in three sections, each in its own tags and in this order:

<thinking>
Work out the answer step by step.
</thinking>
<reflection>
Go over the steps as a critic would: look for slips, gaps and unread parts of the question, and \
correct what you find.
</reflection>
<output>
The final answer, complete in itself and in the form that was asked for.
</output>

The reader is shown the output section only, so it must not refer to the other two."""


class CotReflectionParams(Params):
    body_fields = {"return_full_response": "show_thinking"}  # noqa: RUF012 (ClassVar of the base)

    temperature: float = Field(
        default=0.6, ge=0, le=2, description="Sampling temperature, if the client gives none."
    )
    show_thinking: bool = Field(
        default=False,
        description="Show the whole reply, including thinking and reflection, in its content.",
    )


@approach("cot_reflection", CotReflectionParams, cost=lambda _: Cost(calls=1, depth=1))
async def cot_reflection(
    chat: Chat, llm: LLM, params: CotReflectionParams, ctx: Context
) -> FinalCall:
    """Return the call whose output section is the answer.

    Without an output section, the answer is the text after the thinking, or else the whole reply. A
    reply that is truncated inside its thinking has no text, only its finish reason. The client's
    stop strings apply to the answer, not to the thinking before it. A model that reasons by itself
    is asked for no sections: its reply is the answer, with its own reasoning.
    """
    sampling = Sampling(temperature=params.temperature)
    if ctx.reasons(llm):
        return FinalCall(chat, sampling)
    chat = instruct(chat, INSTRUCTION)
    if params.show_thinking:
        return FinalCall(chat, sampling, thinking_tag="thinking")
    return FinalCall(
        chat,
        replace(sampling, stop=()),
        partial(SectionFilter, "output", ("thinking", "reflection"), ctx.client.stop or ()),
        thinking_tag="thinking",
    )
