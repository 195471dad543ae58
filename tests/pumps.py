"""Texts that a regular expression may take long for, made from the expression itself."""

import random
import re
import re._compiler as compiler  # type: ignore[import-not-found]
import re._constants as op  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

_COMMON: Final = " \n\t1a*A.,-:;\"'`$\\(){}[]<>#_/=|%+!?~^&@\u2019\u2605\u3002\u4e2d\u00e9"
_ALPHABET: Final = _COMMON + string.ascii_letters + string.digits
_LONG: Final = 16
"""Repetitions of at most this take constant time."""

_FAILING: Final = ("", "\x00", "a", "\na")
"""Ends: none, no word, a word, another line."""

_WORDS_A_PATTERN: Final = 24
_SAMPLES: Final = 6
"""Texts of each pattern that match it."""


@dataclass(frozen=True)
class Pump:
    """A text of any length: a beginning, a part that is repeated, and an end."""

    before: str
    repeated: str
    after: str

    def __call__(self, length: int) -> str:
        fixed = len(self.before) + len(self.after)
        times = max(length - fixed, 1) // len(self.repeated) + 1
        return self.before + self.repeated * times + self.after


Node = tuple[Any, Any]


def pumps(pattern: re.Pattern[str], *, most: int = 150, seed: int = 0) -> list[Pump]:
    """Return texts that make `pattern` go on for long, and then fail.

    They repeat, after a text that reaches each repetition of the pattern, a character of each kind
    that the pattern tells apart, what is repeated, and what follows; and they repeat words of the
    pattern and parts of texts that match it. A pattern without long repetitions takes linear time
    on any text, so there are none for it.
    """
    rng = random.Random(seed)
    maker = _Maker(pattern, rng)
    if not maker.repeats():
        return []
    found = [pump for pump in dict.fromkeys(maker.pumps()) if pump.repeated]
    return found if len(found) <= most else rng.sample(found, most)


class _Maker:
    def __init__(self, pattern: re.Pattern[str], rng: random.Random) -> None:
        flags = pattern.flags
        self._tree = parser.parse(pattern.pattern, flags)
        self._flags = self._tree.state.flags | flags
        self._rng = rng
        self._groups: dict[int, str] = {}
        self._kinds = self._representatives()

    def repeats(self) -> bool:
        """Return whether the pattern repeats anything often."""
        return any(True for _ in self._repetitions(list(self._tree), ""))

    def pumps(self) -> Iterator[Pump]:
        for repeated in self._kinds:
            yield from self._twice_ended("", repeated)
        for before, body, rest in self._repetitions(list(self._tree), ""):
            begins = [_accepts_first(body, kind, self._flags) for kind in self._kinds]
            units = [kind for kind, is_one in zip(self._kinds, begins, strict=True) if is_one]
            stops = [kind for kind, is_one in zip(self._kinds, begins, strict=True) if not is_one]
            for unit in dict.fromkeys((*units, self._sample(body), self._sample(body))):
                yield from self._twice_ended(before, unit)
                follows = self._sample(rest)
                for repeated in (before + unit, before + unit + unit, before + unit + follows[:1]):
                    yield self._ended("", repeated)
                    yield Pump("", repeated, self._rng.choice(stops or [""]))
                yield self._ended(before, unit + follows)
            yield self._ended("", before)
        for word in self._words():
            for repeated in (word, word + " ", word + ": ", word + "\n", word + " " + word[:1]):
                yield self._ended("", repeated)
        for _ in range(_SAMPLES):
            text = self._sample(list(self._tree))
            cut = self._rng.randrange(len(text) + 1)
            for part in (text, text[:-1], text[:cut], text[cut:]):
                for between in ("", " ", "\n"):
                    yield self._ended("", part + between)
            yield self._ended(text[:cut], text[cut : cut + 1 + self._rng.randrange(6)])

    def _twice_ended(self, before: str, repeated: str) -> Iterator[Pump]:
        return (Pump(before, repeated, after) for after in self._rng.sample(_FAILING, 2))

    def _ended(self, before: str, repeated: str) -> Pump:
        return Pump(before, repeated, self._rng.choice(_FAILING))

    def _representatives(self) -> list[str]:
        """Return one character of each kind that the pattern tells apart."""
        sets = list(dict.fromkeys(_repr(node) for node in _single(list(self._tree))))
        nodes = {_repr(node): node for node in _single(list(self._tree))}
        literal = "".join(
            chr(node[1]) for node in nodes.values() if node[0] in (op.LITERAL, op.NOT_LITERAL)
        )
        kinds: dict[tuple[bool, ...], str] = {}
        for char in dict.fromkeys(_ALPHABET + literal):
            signs = tuple(_accepts(nodes[key], char, self._flags) for key in sets)
            kinds.setdefault(signs, char)
        if len(kinds) > 40:  # of letters of words, a few will do
            chars = list(kinds.values())
            return [c for c in chars if not c.isalpha()] + [c for c in chars if c.isalpha()][:8]
        return list(kinds.values())

    def _words(self) -> list[str]:
        """Return literal parts of the pattern of two or more characters."""
        words = list(dict.fromkeys(_literals(list(self._tree))))
        if len(words) > _WORDS_A_PATTERN:
            words = self._rng.sample(words, _WORDS_A_PATTERN)
        return words

    def _repetitions(
        self, nodes: Sequence[Node], before: str
    ) -> Iterator[tuple[str, list[Node], list[Node]]]:
        """Yield each long repetition: a text that leads to it, what it repeats, what follows."""
        for index, (kind, value) in enumerate(nodes):
            rest = list(nodes[index + 1 :])
            if kind in _REPEATS:
                _, most, body = value
                if most > _LONG:
                    yield before, list(body), rest[:2]
                yield from self._repetitions(list(body), before)
            elif kind is op.BRANCH:
                for branch in value[1]:
                    yield from self._repetitions(list(branch), before)
            else:
                for inner in _inside(kind, value):
                    yield from self._repetitions(inner, before)
            before += self._sample([(kind, value)])

    def _sample(self, nodes: Sequence[Node]) -> str:
        """Return a short text that `nodes` may match."""
        return "".join(self._sample_one(kind, value) for kind, value in nodes)

    def _sample_one(self, kind: Any, value: Any) -> str:
        if kind in _REPEATS:
            least, most, body = value
            times = min(max(least, self._rng.choice((0, 1, 1, 2))), most)
            return "".join(self._sample(list(body)) for _ in range(times))
        if kind is op.BRANCH:
            return self._sample(list(self._rng.choice(value[1])))
        if kind is op.SUBPATTERN:
            text = self._sample(list(value[3]))
            if value[0] is not None:
                self._groups[value[0]] = text
            return text
        if kind is op.ATOMIC_GROUP:
            return self._sample(list(value))
        if kind is op.ASSERT:
            return self._sample(list(value[1])) if self._rng.random() < 0.4 else ""
        if kind is op.GROUPREF:
            return self._groups.get(value, "")
        if kind is op.GROUPREF_EXISTS:
            return self._sample(list(value[1]))
        if kind in (op.AT, op.ASSERT_NOT, op.FAILURE):
            return ""
        fitting = [c for c in self._chars() if _accepts((kind, value), c, self._flags)]
        return self._rng.choice(fitting[:6]) if fitting else ""

    @cache  # noqa: B019
    def _chars(self) -> tuple[str, ...]:
        literal = {chr(value) for kind, value in _single(list(self._tree)) if kind is op.LITERAL}
        return tuple(dict.fromkeys(("1", "a", "A", " ", "*", *_ALPHABET, *sorted(literal))))


_REPEATS: Final = (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT)


def _inside(kind: Any, value: Any) -> list[list[Node]]:
    if kind in _REPEATS:
        return [list(value[2])]
    if kind is op.BRANCH:
        return [list(branch) for branch in value[1]]
    if kind is op.SUBPATTERN:
        return [list(value[3])]
    if kind is op.ATOMIC_GROUP:
        return [list(value)]
    if kind in (op.ASSERT, op.ASSERT_NOT):
        return [list(value[1])]
    if kind is op.GROUPREF_EXISTS:
        return [list(part) for part in value[1:] if part is not None]
    return []


_CHARACTER: Final = (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN)


def _single(nodes: Sequence[Node]) -> Iterator[Node]:
    """Yield the nodes that match one character."""
    for kind, value in nodes:
        if kind in _CHARACTER:
            yield kind, value
        for inner in _inside(kind, value):
            yield from _single(inner)


def _literals(nodes: Sequence[Node]) -> Iterator[str]:
    """Yield the runs of literal characters."""
    run = ""
    for kind, value in nodes:
        if kind is op.LITERAL:
            run += chr(value)
            continue
        if len(run) > 1:
            yield run
        run = ""
        for inner in _inside(kind, value):
            yield from _literals(inner)
    if len(run) > 1:
        yield run


def _accepts_first(nodes: Sequence[Node], char: str, flags: int) -> bool:
    """Return whether `char` is the whole of what `nodes` repeat, or may begin it."""
    for kind, value in nodes:
        if kind in _CHARACTER:
            return _accepts((kind, value), char, flags)
        inner = _inside(kind, value)
        if any(_accepts_first(part, char, flags) for part in inner):
            return True
        if kind not in _REPEATS and inner:
            return False
    return False


def _repr(node: Node) -> str:
    return repr(node)


def _accepts(node: Node, char: str, flags: int) -> bool:
    return bool(_test(_repr(node), node, flags)(char))


_tests: dict[tuple[str, int], Callable[[str], bool]] = {}


def _test(key: str, node: Node, flags: int) -> Callable[[str], bool]:
    known = _tests.get((key, flags))
    if known is None:
        known = _tests[key, flags] = _compiled(node, flags)
    return known


def _compiled(node: Node, flags: int) -> Callable[[str], bool]:
    """Return the test of one character class: the parsed node, compiled alone."""
    state = parser.State()
    state.flags = flags
    state.str = ""
    pattern = compiler.compile(parser.SubPattern(state, [node]), flags)
    return lambda char: pattern.fullmatch(char) is not None
