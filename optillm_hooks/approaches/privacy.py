"""Privacy: reversible pseudonyms in place of private values, which no model gets to see.

Good for: the form of answers, and privacy.
Worth it when: private values must not reach the model's provider.
Source: Microsoft's Presidio documents pseudonymisation as a sample; the map here is of our own. One
map serves a whole conversation: the same value has the same pseudonym in the system prompt, in
every message, in tool calls and their results, and in what stages inside add, such as pages.
Spellings of one value (a name and its parts, a number with and without its country code) share a
code. The answer gets the values back, however it comes. Deviations: no dates and plain numbers are
replaced, because questions are about them; nothing is downloaded.
On reasoning models: the same. The reasoning gets the values back too, except in signed blocks of
thinking, which a provider checks when they come back.
Cost: no call of its own. A conversation with private values gets a paragraph on them.
"""

from dataclasses import replace
from functools import partial
from typing import Final, Literal

from pydantic import Field

from optillm_hooks.answers.voting import wants_json
from optillm_hooks.context import Context
from optillm_hooks.errors import RequestRejected
from optillm_hooks.llm import LLM, FinalCall
from optillm_hooks.privacy.answer_filter import AnswerFilter
from optillm_hooks.privacy.conversation import attachments
from optillm_hooks.privacy.private_llm import PrivateConversation, PrivateLLM, PrivateScorer
from optillm_hooks.prompts import instruct
from optillm_hooks.registry import Cost, Params, Rest, Result, wrapper
from optillm_hooks.services import Privacy, Services
from optillm_hooks.types import Answer, Chat, Sampling

NOTE: Final = """\
Words such as {example} stand for values that are not shown to you. Use them as they are wherever \
you would write the value itself: they are replaced later. Words with the same six letters in them \
mean the same. Do not comment on them."""


class PrivacyParams(Params):
    confidential = True

    entities: tuple[str, ...] | None = Field(
        default=None,
        max_length=64,
        description="Kinds of values to replace: PERSON, EMAIL, PHONE, CARD, IBAN, KEY, IP, MAC, "
        "and those of the operator's detectors; unset: the operator's choice, by default all.",
    )
    allow: tuple[str, ...] = Field(
        default=(),
        max_length=1000,
        description="Values that are not private. `@example.org` allows its addresses.",
    )
    deny: tuple[str, ...] = Field(
        default=(), max_length=1000, description="Words that are replaced wherever they stand."
    )
    attachments: Literal["refuse", "pass"] | None = Field(
        default=None,
        description="What happens to a request with images, sound or files, in which nothing can "
        "be replaced; unset: the operator's choice, by default refuse.",
    )

    def check_services(self, services: Services) -> None:
        if services.privacy.missing:
            raise RequestRejected(services.privacy.missing)

    def applied(self, privacy: Privacy) -> Privacy:
        """Return the operator's settings with these parameters."""
        return replace(
            privacy,
            entities=privacy.entities if self.entities is None else self.entities,
            allow=(*privacy.allow, *self.allow),
            deny=(*privacy.deny, *self.deny),
            attachments=self.attachments or privacy.attachments,
        )


@wrapper("privacy", PrivacyParams, cost=lambda _: Cost(calls=0, depth=0))
async def privacy(chat: Chat, rest: Rest, _llm: LLM, params: PrivacyParams, ctx: Context) -> Result:
    """Return the result of the stages inside, which see pseudonyms, with the values.

    From here on the client's own fields have pseudonyms too: the final call is made outside. A
    stage that checks an answer checks it as the client gets it.

    Raises:
        RequestRejected: the conversation has attachments, which are refused, or is too long.
        ServiceFailed: a detector failed. Nothing is sent to a model then.
    """
    settings = params.applied(ctx.services.privacy)
    if settings.attachments == "refuse" and (kinds := attachments(chat)):
        raise RequestRejected(
            f"privacy cannot replace anything in {', '.join(kinds)}: leave it out, or have it "
            "passed on as it is with the parameter attachments=pass",
            param="messages",
        )
    conversation = PrivateConversation.begin(chat, settings, ctx.services.owner)
    pseudonyms = conversation.pseudonyms
    is_json = wants_json(ctx.client)
    chat, ctx.client = await conversation.replaced(chat, _with_end_user(ctx))
    if pseudonyms:
        chat = instruct(chat, NOTE.format(example=pseudonyms.example))
        ctx.trace.note("privacy", values=len(pseudonyms))

    def restoring() -> AnswerFilter:
        return AnswerFilter(pseudonyms, is_json=is_json)

    def restored(text: str) -> str:
        return around(restoring().whole(Answer(text)).text)

    around, ctx.as_shown = ctx.as_shown, restored

    result = await rest(
        chat,
        through=partial(PrivateLLM, conversation=conversation, ctx=ctx),
        scoring=partial(PrivateScorer, conversation=conversation),
    )
    if not isinstance(result, FinalCall):
        return restoring().whole(result)
    fallback = result.fallback and restoring().whole(result.fallback)
    return replace(result, wrappers=(*result.wrappers, restoring), fallback=fallback)


def _with_end_user(ctx: Context) -> Sampling:
    """Return the client's fields, with the id of its user, which goes to providers too."""
    user = ctx.services.owner.end_user
    return replace(ctx.client, fields={**ctx.client.fields, "user": user}) if user else ctx.client
