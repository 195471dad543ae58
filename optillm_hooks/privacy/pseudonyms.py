"""The pseudonyms of one conversation: which value has which, and back."""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from optillm_hooks.answers.patterns import Pattern
from optillm_hooks.errors import RequestRejected
from optillm_hooks.privacy.found import CARD, IBAN, PERSON, PHONE, Found
from optillm_hooks.privacy.names import is_proper
from optillm_hooks.privacy.occurrences import Value
from optillm_hooks.privacy.tokens import ALPHABET, CODE, CODE_LENGTH, NUMBER_LENGTH

MAX_VALUES: Final = 9_999
"""Maximum private values of a conversation, each spelling counted."""

_NUMBER_AHEAD: Final = Pattern(r"\\{0,2}_?\d")
"""What would look like the number of a pseudonym before it."""

MAX_LENGTH: Final = 10_000
"""Maximum length of a value that is looked for in other texts."""


@dataclass(slots=True, repr=False)
class Pseudonyms:
    """A map of values and their pseudonyms. It lives as long as one request and is never shown."""

    salt: bytes
    reserved: set[str] = field(default_factory=set[str])
    """Words of the conversation that look like codes, which no pseudonym gets."""

    spellings: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """The spellings of each value, by its code."""

    in_full: set[str] = field(default_factory=set[str])
    """The codes that have been written with all digits of a number."""

    _by_spelling: dict[str, str] = field(default_factory=dict[str, str])
    _by_key: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    _values: dict[str, Value] = field(default_factory=dict[str, Value])
    _parts: dict[str, None] = field(default_factory=dict[str, None])
    """The parts of people's names."""

    _people: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    """The keys of people by each part of their names."""

    entities: set[str] = field(default_factory=set[str])
    """The kinds of the values."""

    def __repr__(self) -> str:
        return f"<{len(self._by_spelling)} pseudonyms>"

    def __bool__(self) -> bool:
        return bool(self.spellings)

    def __len__(self) -> int:
        return len(self._by_spelling)

    @property
    def example(self) -> str:
        """The first pseudonym."""
        return next(iter(self._by_spelling.values()))

    @property
    def values(self) -> Sequence[Value]:
        """The values to look for in every text."""
        parts = (Value(part, PERSON, self._person(part.casefold())) for part in self._parts)
        return (*self._values.values(), *(p for p in parts if p.text not in self._values))

    def is_own(self, text: str) -> bool:
        """Return whether `text` is a pseudonym."""
        found = CODE.search(text)
        return found is not None and found[0].upper() in self.spellings

    def learn(self, text: str, found: Sequence[Found]) -> list[Found]:
        """Note the values in `text`, so that they are looked for in other texts too.

        Values within pseudonyms are none; the others are returned.
        """
        own = [at.span() for at in CODE.finditer(text) if at[0].upper() in self.spellings]
        found = [f for f in found if not any(a < f.end and f.start < b for a, b in own)]
        for each in sorted(found, key=lambda f: f.start - f.end):  # full names before their parts
            value = text[each.start : each.end]
            if each.entity == PERSON:
                self._learn_person(value, each.key)
            elif 1 < len(value) <= MAX_LENGTH:
                self._note(Value(value, each.entity, each.key))
                for spelling in _plain(each):
                    self._note(Value(spelling, each.entity, each.key))
        return found

    def _learn_person(self, name: str, key: str) -> None:
        key = self._person(key)
        if len(name) > 1 and not (name.islower() and " " not in name):  # a word, elsewhere
            self._note(Value(name, PERSON, key))
        parts = [part for part in name.split() if is_proper(part)]
        for part in parts if len(parts) > 1 else ():
            self._people.setdefault(part.casefold(), set()).add(key)
            self._parts[part] = None

    def _person(self, key: str) -> str:
        """Return the key of the person whom a name means: by first and last name, or a part.

        A part of the names of several people is nobody's.
        """
        words = key.split()
        if len(words) > 1:
            return f"{words[0]} {words[-1]}"
        people = self._people.get(key, ())
        return next(iter(people)) if len(people) == 1 else key

    def _note(self, value: Value) -> None:
        self._values.setdefault(value.text, value)
        if len(self._values) > MAX_VALUES:
            raise RequestRejected(f"privacy replaces at most {MAX_VALUES:,} values of a request")

    def pseudonym(self, value: str, entity: str, key: str) -> str:
        """Return the pseudonym of a value as it is spelt."""
        known = self._by_spelling.get(value)
        if known is not None:
            return known
        code = self._code(entity, self._person(key) if entity == PERSON else key)
        spellings = self.spellings.setdefault(code, [])
        spellings.append(value)
        number = f"_{len(spellings)}" if len(spellings) > 1 else ""
        self.entities.add(entity)
        made = self._by_spelling[value] = f"{entity}_{code}{number}"
        if len(self._by_spelling) > MAX_VALUES:
            raise RequestRejected(f"privacy replaces at most {MAX_VALUES:,} values of a request")
        return made

    def _in_full(self, pseudonym: str) -> str:
        """Return a pseudonym with all digits of its number, so that it cannot take what follows."""
        entity, code, *number = pseudonym.split("_")
        self.in_full.add(code)
        return f"{entity}_{code}_{int(number[0]) if number else 1:0{NUMBER_LENGTH}d}"

    def _code(self, entity: str, key: str) -> str:
        code = self._by_key.get((entity, key))
        attempt = 0
        while code is None or (attempt and (code in self.spellings or code in self.reserved)):
            code = _letters(self.salt, f"{entity}\0{key}\0{attempt}")
            attempt += 1
        return self._by_key.setdefault((entity, key), code)

    def replaced(self, text: str, found: Sequence[Found]) -> str:
        """Return `text` with pseudonyms in place of what was found."""
        pieces: list[str] = []
        end = 0
        for each in found:
            value = text[each.start : each.end]
            made = self.pseudonym(value, each.entity, each.key)
            if _NUMBER_AHEAD.match(text, each.end):
                made = self._in_full(made)
            pieces += [text[end : each.start], made]
            end = each.end
        return "".join((*pieces, text[end:]))


def _plain(found: Found) -> Sequence[str]:
    """Return the other spellings of a number that are likely in data: without separators."""
    if found.entity in (CARD, IBAN):
        return (found.key,)
    if found.entity == PHONE and " " in found.key:
        country, national = found.key.split(" ", 1)
        return (f"{country}{national}", f"{country[1:]}{national}", national)
    return ()


def _letters(salt: bytes, text: str) -> str:
    number = int.from_bytes(hmac.digest(salt, text.encode(errors="replace"), sha256))
    letters = ""
    for _ in range(CODE_LENGTH):
        number, letter = divmod(number, len(ALPHABET))
        letters += ALPHABET[letter]
    return letters
