"""Re2: re-reading. The question is repeated, so that a causal model rereads it knowing its end.

Good for: a single call.
Worth it when: a model without reasoning misreads long questions, and one call has to do.
Source: Xu et al. 2023, "Re-Reading Improves Reasoning in Large Language Models",
arXiv:2309.06275, section 3. As in the paper, only the question is repeated (here: the last user
turn), not the instructions or the history; its step-by-step trigger is the parameter `think`.
On reasoning models: `think` adds nothing, since they think anyway.
Cost: no call of its own; the prompt of the plain call that follows contains the question twice.
"""

from pydantic import Field

from optillm_hooks.context import Context
from optillm_hooks.llm import LLM
from optillm_hooks.prompts import edit_question, question
from optillm_hooks.registry import Cost, Params, rewriter
from optillm_hooks.types import Chat

TRIGGER = "Think it through step by step."


class Re2Params(Params):
    think: bool = Field(
        default=False, description="Ask for step-by-step thinking after the second reading."
    )


def read_again(asked: str) -> str:
    return f"{asked}\n\nRead the question again: {asked}"


@rewriter("re2", Re2Params, cost=lambda _: Cost(calls=0, depth=0))
async def re2(chat: Chat, llm: LLM, params: Re2Params, ctx: Context) -> Chat:
    """Return `chat` with its last user turn stated twice; images in it are not repeated.

    A conversation without a user turn, or whose last one has no text, is returned unchanged.
    """
    if not question(chat).strip():
        return chat
    parts = [TRIGGER] if params.think and not ctx.reasons(llm) else []
    return edit_question(chat, lambda asked: "\n\n".join([read_again(asked), *parts]))
