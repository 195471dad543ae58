"""A model whose errors follow a stated law, for benchmarks of the methods.

Which call is made is read from its prompt: it is either the plain question, or contains a text of
the module that asks. Anything else is `UnknownRequest`, so that a prompt that changes is never
taken for a question.
"""

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from optillm_hooks import merging
from optillm_hooks.approaches import (
    abmcts,
    cepo,
    cot_reflection,
    deepthink,
    fusion,
    leap,
    mars,
    mcts,
    moa,
    plansearch,
    pvg,
    rstar,
    rto,
    z3,
)
from optillm_hooks.final_answer import FINAL, MARK, MARK_IF_DEFINITE, REASON
from optillm_hooks.judging import decoys
from optillm_hooks.judging.choosing import BEST, MOST_CONSISTENT
from optillm_hooks.testing import AnsweringLLM
from optillm_hooks.types import Chat, Sampling
from tests.fakes import filled_form

WRONG_SHARES: Final = (0.6, 0.3, 0.1)
"""Wrong answers agree with each other more often than chance would have it."""

LAWS: Final = """\
* A problem is solved by one call with probability p_i, independently of every other call. The p_i
  of the problems follow Beta(2p, 2(1 - p)): easy and hard ones are mixed, p is their mean. Wrong
  answers have the shares .6, .3 and .1. A temperature has no effect.
* A judge of accuracy q says of an answer whether it is right, and that is true with probability q,
  independently of everything else. It rates an answer that it finds right 7, 8 or 9, and another 2,
  3 or 4. "Itself" is the model as its own judge: it solves the problem once more, and finds right
  what has its own answer.
* A call that compares, fuses, reviews or improves answers judges each different answer in this way,
  and takes the most frequent one that it finds right; if it finds none right, it solves the problem
  anew.
* Plans, sub-questions, critiques and strategies neither help nor hurt. A decoy is a wrong answer.
"""

QUESTION: Final = """\
A farm packs its eggs into boxes and counts them at night. How many eggs does it pack in a week?"""

_PROSE: Final = (
    "In {n} small steps the daily counts add up, so it packs {answer} eggs in a week.",
    "I add up the days in {n} groups. The answer is **{answer}**.",
    "Day by day, with {n} checks on the way: the total is {answer} eggs.",
    "Counting in {n} rounds, the week comes to {answer}.",
    "With {n} partial sums, that makes {answer} eggs in all.",
    "{n} sums later the result is {answer} eggs.",
)
_NEUTRAL: Final = "1. Boxes are counted at night.\n2. A week has seven days.\n3. Check each sum."

_SOLVE: Final = (
    cepo.EXECUTE,
    cepo.SOLVE,
    cot_reflection.INSTRUCTION,
    deepthink.FOLLOW,
    leap.OR_ANSWER,
    leap.SOLVE,
    mars.ANSWER,
    mars.EXPLORE,
    plansearch.ANSWER,
    plansearch.CONSIDER,
    pvg.HELPFUL,
    rstar.COMPLETE,
    rstar.REQUESTS[rstar.Action.FINISH],
    z3.OR_ANSWER,
)
_NEUTRAL_STEPS: Final = (
    cepo.PLAN,
    mars.EXTRACT,
    moa.CRITICISE,
    plansearch.OBSERVE,
    plansearch.PLAN,
    plansearch.PLAN_FREELY,
    pvg.REVIEW,
    *(text for action, text in rstar.REQUESTS.items() if action is not rstar.Action.FINISH),
)
_FUSE: Final = (
    abmcts.REFINE,
    cepo.REVIEW,
    fusion.SYNTHESISE,
    merging.MERGE,
    mars.ENHANCE,
    mars.IMPROVE,
    mars.SYNTHESISE,
    mcts.REFINE,
    moa.AGAIN,
    moa.FUSE,
    rto.MERGE,
)
REQUESTS: Final[Mapping[str, Sequence[str]]] = {
    "solve": _SOLVE,
    "neutral": _NEUTRAL_STEPS,
    "fuse": _FUSE,
    "rate": ("RATING: <number>",),
    "choose": (BEST,),
    "most consistent": (MOST_CONSISTENT,),
    "verify": (mars.VERIFY,),
    "copy": (FINAL,),
    "decoy": (decoys.SNEAKY,),
    "describe": (rto.DESCRIBE,),
}
"""What is asked for, to the texts in prompts that ask for it."""

_HARMLESS: Final = (MARK, MARK_IF_DEFINITE, REASON)
"""Texts beside a question that leave it the plain question."""

_FRAME: Final = re.compile(r"<(\w+) \d+ ([0-9a-f]{16})>\n(.*?)\n</\1 \d+ \2>", re.DOTALL)


class UnknownRequest(AssertionError):
    """A prompt asks for something that the simulated model does not know."""


def _literal(template: str) -> str:
    """Return the longest part of a template without fields."""
    return max(re.split(r"[{}]", template), key=len).strip()


_LITERALS: Final = {role: [_literal(text) for text in texts] for role, texts in REQUESTS.items()}


def role_of(chat: Chat) -> str:
    """Return what the last message of `chat` asks for: a key of `REQUESTS`, "form" or "solve".

    Raises:
        UnknownRequest: it is neither the plain question nor in `REQUESTS`.
    """
    request = chat[-1].text
    if filled_form(request):
        return "form"
    roles = {role for role, texts in _LITERALS.items() if any(text in request for text in texts)}
    if "solve" in roles:  # a short one may be part of another prompt
        roles = roles - {"solve"} or roles
    if len(roles) == 1:
        return roles.pop()
    rest = request
    for text in (QUESTION, *_HARMLESS):
        rest = rest.replace(text, "")
    if roles or rest.strip():
        raise UnknownRequest(f"{sorted(roles)}: {rest.strip()[:200]!r}")
    return "solve"


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem with its answers, the right one first, and how often a call solves it."""

    answers: tuple[str, ...]
    difficulty: float

    @property
    def right(self) -> str:
        return self.answers[0]

    def answer_in(self, text: str) -> str | None:
        """Return the last of the problem's answers in `text`."""
        found = [number for number in re.findall(r"\b\d{4}\b", text) if number in self.answers]
        return found[-1] if found else None


def problem(rng: random.Random, p: float) -> Problem:
    """Return a random problem of mean difficulty `p`."""
    numbers = rng.sample(range(1000, 10_000), 1 + len(WRONG_SHARES))
    return Problem(tuple(map(str, numbers)), rng.betavariate(2 * p, 2 * (1 - p)))


class Simulated(AnsweringLLM):
    """A model that solves `problem`, and judges answers to it, by `LAWS`.

    Args:
        problem: what it is asked.
        accuracy: that of its judgements; None if it judges by a solution of its own.
        rng: decides what is right.
        model: its name.
    """

    def __init__(
        self, problem: Problem, accuracy: float | None, rng: random.Random, model: str = "base"
    ) -> None:
        super().__init__(self._reply, model=model)
        self._problem = problem
        self._accuracy = accuracy
        self._rng = rng
        self.unknown: UnknownRequest | None = None
        """The first request that was not understood."""

        self.judged = False
        """Whether any call judged an answer."""

    def _reply(self, chat: Chat, _: Sampling) -> str:
        try:
            role = role_of(chat)
        except UnknownRequest as exc:
            self.unknown = self.unknown or exc
            raise
        request = chat[-1].text
        frames = [frame[3] for frame in _FRAME.finditer(request)]
        shown = [answer for text in frames if (answer := self._problem.answer_in(text))]
        match role:
            case "rate":
                low = 7 if self._holds_right(shown) else 2
                return f"RATING: {low + self._rng.randrange(3)}"
            case "verify":
                return f"VERDICT: {'CORRECT' if self._holds_right(shown) else 'INCORRECT'}"
            case "choose" | "most consistent":
                best = self._fused(shown) if role == "choose" else _most_frequent(shown)
                chosen = best if best in shown else self._rng.choice(shown)
                at = next(i for i, f in enumerate(frames) if self._problem.answer_in(f) == chosen)
                return f"BEST: {at + 1}"
            case "fuse":
                if rto.MERGE in request and len(set(shown)) == 1:
                    return rto.SAME
                fused = self._fused(shown)
                if mcts.OR_UNCHANGED in request and [fused] == shown:
                    return mcts.UNCHANGED
                return self._written(fused, chat)
            case "copy":
                return self._written(_most_frequent(shown), chat)
            case "decoy":
                return self._written(self._drawn(0.0), chat)
            case "neutral":
                return _NEUTRAL
            case "describe":
                return QUESTION
            case "form":
                return filled_form(request)
            case _:
                return self._written(self._drawn(self._problem.difficulty), chat)

    def _written(self, answer: str, chat: Chat) -> str:
        """Return a solution in prose, worded as no other of this model is."""
        number = len(self.calls)
        said = _PROSE[self._rng.randrange(len(_PROSE))].format(n=number + 2, answer=answer)
        marked = any(re.search(r"ANSWER: <", message.text) for message in chat)
        return f"{said}\nANSWER: {answer}" if marked else said

    def _drawn(self, p: float) -> str:
        right, *wrong = self._problem.answers
        return right if self._rng.random() < p else self._rng.choices(wrong, WRONG_SHARES)[0]

    def _held_right(self, shown: Sequence[str]) -> tuple[set[str], str]:
        """Return which of the answers the model holds right, and its own if they are none."""
        self.judged = True
        own = self._drawn(self._problem.difficulty)
        if self._accuracy is None:
            return {own}.intersection(shown), own
        is_true = {answer: self._rng.random() < self._accuracy for answer in dict.fromkeys(shown)}
        return {a for a in is_true if (a == self._problem.right) == is_true[a]}, own

    def _holds_right(self, shown: Sequence[str]) -> bool:
        [answer] = shown
        return answer in self._held_right([answer])[0]

    def _fused(self, shown: Sequence[str]) -> str:
        held, own = self._held_right(shown)
        good = [answer for answer in shown if answer in held]
        return _most_frequent(good) if good else own


def _most_frequent(answers: Sequence[str]) -> str:
    """Return the most frequent answer, the first of a tie."""
    return Counter(answers).most_common(1)[0][0]
