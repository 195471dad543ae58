"""A conversation with pseudonyms in place of its private values, and the model that sees it."""

import asyncio
import hmac
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final, Self

from optillm_hooks.context import Context
from optillm_hooks.llm import LLM, ModelFacts, Scorer, Scores
from optillm_hooks.privacy.conversation import visit_chat, visit_sampling
from optillm_hooks.privacy.found import BUILT_IN, CUSTOM, PERSON, Found, without_overlaps
from optillm_hooks.privacy.names import is_proper, person
from optillm_hooks.privacy.pseudonyms import Pseudonyms
from optillm_hooks.privacy.scan import occurrences, scan
from optillm_hooks.privacy.schemas import without_forms
from optillm_hooks.services import Detector, Owner, Privacy
from optillm_hooks.types import Chat, Completion, Delta, Message, Sampling

_ENTITIES: Final = {
    "EMAIL_ADDRESS": "EMAIL",
    "PHONE_NUMBER": "PHONE",
    "CREDIT_CARD": "CARD",
    "IBAN_CODE": "IBAN",
    "IP_ADDRESS": "IP",
    "MAC_ADDRESS": "MAC",
}
"""Presidio's names of what has a name here."""


@dataclass(slots=True)
class _Collector:
    """Collects the texts of a conversation."""

    texts: dict[str, None] = field(default_factory=dict[str, None])
    people: list[str] = field(default_factory=list[str])

    def text(self, text: str, /) -> str:
        self.texts[text] = None
        return text

    def name(self, name: str, entity: str, /) -> str:
        if entity == PERSON:
            self.people.append(name)
        return name

    def note(self, text: str, /) -> None:
        self.texts[text] = None


@dataclass(slots=True)
class _Replacer:
    """Puts pseudonyms into the texts of a conversation."""

    replaced: dict[str, str]
    pseudonyms: Pseudonyms

    def text(self, text: str, /) -> str:
        return self.replaced[text]

    def name(self, name: str, entity: str, /) -> str:
        if not name or self.pseudonyms.is_own(name):
            return name
        key = person(name) if entity == PERSON else name
        return self.pseudonyms.pseudonym(name, entity, key)

    def note(self, _text: str, /) -> None:
        return None


class PrivateConversation:
    """Replaces the private values of a conversation, and of all that is added to it.

    Args:
        privacy: how values are found.
        pseudonyms: those of the conversation.
    """

    def __init__(self, privacy: Privacy, pseudonyms: Pseudonyms) -> None:
        self.pseudonyms = pseudonyms
        self._privacy = privacy
        self._entities = _chosen(privacy.entities)
        self._allowed = frozenset(value.casefold() for value in privacy.allow)
        self._found: dict[str, list[Found]] = {}
        """What the detectors have found in each text."""

        self._replaced: dict[str, tuple[int, str]] = {}
        """Each text with pseudonyms, and how many values were known then."""

        self._turn = asyncio.Lock()
        for word in privacy.deny:
            pseudonyms.learn(word, [Found(0, len(word), CUSTOM, word.casefold())])

    @classmethod
    def begin(cls, chat: Chat, privacy: Privacy, owner: Owner) -> Self:
        """Return the conversation that begins as `chat` does.

        Pseudonyms differ between callers and between conversations, and are the same again when the
        client sends a conversation with its next turn.
        """
        user = next((at for at, message in enumerate(chat) if message.role == "user"), 0)
        beginning = repr((owner.key, owner.team, owner.user, chat[: user + 1]))
        salt = hmac.digest(privacy.secret, beginning.encode(errors="replace"), sha256)
        return cls(privacy, Pseudonyms(salt))

    async def replaced(self, chat: Chat, sampling: Sampling) -> tuple[Chat, Sampling]:
        """Return a call with pseudonyms in place of private values.

        Raises:
            ServiceFailed: a text could not be searched.
            RequestRejected: there is too much text, or there are too many values.
        """
        collector = _Collector()
        visit_chat(chat, collector)
        visit_sampling(sampling, collector)
        async with self._turn:  # calls of a fan-out have texts in common
            await self._detect([text for text in collector.texts if text not in self._found])
            for name in collector.people:
                if (is_proper(name) or " " in name) and not self._is_allowed(name):
                    self.pseudonyms.learn(name, [Found(0, len(name), PERSON, person(name))])
            await self._replace(collector.texts)
        replacer = _Replacer(
            {text: self._replaced[text][1] for text in collector.texts}, self.pseudonyms
        )
        return visit_chat(chat, replacer), visit_sampling(sampling, replacer)

    async def _detect(self, texts: Sequence[str]) -> None:
        found, codes = await scan(texts, self._entities, self._privacy.regions)
        self.pseudonyms.reserved |= codes - self.pseudonyms.spellings.keys()
        for detector in self._privacy.detectors if texts else ():
            more = await self._asked(detector, texts)
            found = [without_overlaps(a + b) for a, b in zip(found, more, strict=True)]
        for text, values in zip(texts, found, strict=True):
            kept = [each for each in values if not self._is_allowed(text[each.start : each.end])]
            self._found[text] = self.pseudonyms.learn(text, kept)

    async def _asked(self, detector: Detector, texts: Sequence[str]) -> list[list[Found]]:
        found: list[list[Found]] = []
        for text, values in zip(texts, await detector(texts), strict=True):
            read = [
                Found(start, end, entity, person(text[start:end]))
                for start, end, name in values
                if (entity := _entity(name)) and self._is_chosen(entity) and start < end
            ]
            found.append(read)
        return found

    def _is_chosen(self, entity: str) -> bool:
        return self._privacy.entities is None or entity in self._entities

    def _is_allowed(self, value: str) -> bool:
        value = value.casefold()
        return value in self._allowed or value[value.rfind("@") :] in self._allowed

    async def _replace(self, texts: Iterable[str]) -> None:
        """Make what stands in place of each text, unless it is made and no value is new."""
        known = len(self.pseudonyms.values)
        stale = [text for text in texts if self._replaced.get(text, (-1, ""))[0] != known]
        for text, others in zip(
            stale, await occurrences(stale, self.pseudonyms.values), strict=True
        ):
            found = without_overlaps([*self._found[text], *others])
            made = self.pseudonyms.replaced(text, found)
            self._replaced[text] = known, made
            self._found.setdefault(made, [])
            self._replaced.setdefault(made, (known, made))


def _chosen(entities: Sequence[str] | None) -> tuple[str, ...]:
    return BUILT_IN if entities is None else tuple(_entity(name) for name in entities)


def _entity(name: str) -> str:
    """Return the name of an entity as it stands in a pseudonym: capital letters."""
    return _ENTITIES.get(name, "".join(c for c in name.upper() if "A" <= c <= "Z"))


class PrivateLLM:
    """An `LLM` that gets pseudonyms, whatever its caller sends. Its replies have them too.

    Schemas are sent without what a pseudonym does not match. Stages check answers by the client's.
    """

    def __init__(self, inner: LLM, conversation: PrivateConversation, ctx: Context) -> None:
        self.model = inner.model
        self._inner = inner
        self._conversation = conversation
        self._ctx = ctx

    @property
    def facts(self) -> ModelFacts:
        return self._inner.facts

    async def complete(self, chat: Chat, sampling: Sampling, /) -> Completion:
        return await self._inner.complete(*await self._call(chat, sampling))

    async def complete_n(self, chat: Chat, sampling: Sampling, n: int, /) -> Sequence[Completion]:
        return await self._inner.complete_n(*await self._call(chat, sampling), n)

    async def stream(self, chat: Chat, sampling: Sampling, /) -> AsyncGenerator[Delta, None]:
        call = await self._call(chat, sampling)
        async with aclosing(self._inner.stream(*call)) as pieces:
            async for delta in pieces:
                yield delta

    async def _call(self, chat: Chat, sampling: Sampling) -> tuple[Chat, Sampling]:
        chat, sampling = await self._conversation.replaced(chat, sampling)
        if not self._conversation.pseudonyms:
            return chat, sampling
        sent = self._ctx.filled(sampling).fields
        opened = without_forms(sent)
        changed = {name: opened[name] for name in sent if opened[name] != sent[name]}
        return chat, replace(sampling, fields={**sampling.fields, **changed})


class PrivateScorer:
    """A `Scorer` that gets pseudonyms, whatever its caller sends."""

    def __init__(self, inner: Scorer, conversation: PrivateConversation) -> None:
        self.model = inner.model
        self._inner = inner
        self._conversation = conversation

    @property
    def facts(self) -> ModelFacts:
        return self._inner.facts

    async def score(self, chat: Chat, texts: Sequence[str], /) -> Scores:
        answers = tuple(Message("assistant", text) for text in texts)
        seen, _ = await self._conversation.replaced((*chat, *answers), Sampling())
        return await self._inner.score(
            seen[: len(chat)], [answer.text for answer in seen[len(chat) :]]
        )
