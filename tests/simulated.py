"""A model whose errors follow a known law, and one that answers by what it is asked for."""

import asyncio
import random
import re
from collections.abc import Callable

from optillm_hooks.approaches import leap, mcts, plansearch, pvg, rstar, rto
from optillm_hooks.judging import decoys
from optillm_hooks.testing import AnsweringLLM
from optillm_hooks.types import Chat, Completion, Sampling

RIGHT = "42"
WRONG = ("41", "43", "40")
WRONG_WEIGHTS = (0.6, 0.3, 0.1)
"""Wrong answers agree with each other more often than chance would have it."""


def solution(answer: str) -> str:
    return f"6 * 7, step by step.\nANSWER: {answer}"


def shown(answer: str) -> str:
    """Return `solution(answer)` as the user sees it."""
    return f"6 * 7, step by step.\n\n{answer}"


def end_of(text: str) -> str:
    """Return the last word of an answer, which is the final answer of a solution."""
    return text.split()[-1]


def rating(out_of_ten: int) -> str:
    return f"RATING: {out_of_ten}"


def answer_in(text: str) -> str:
    return str(re.findall(r"ANSWER: (\d+)", text)[-1])


def kind(chat: Chat, sampling: Sampling) -> str:
    """Return what a call of the searching approaches asks for."""
    request = chat[-1].text
    requests = {
        "refine": mcts.REFINE,
        "observe": plansearch.OBSERVE[:24],
        "plan": plansearch.PLAN[:60],
        "plan freely": plansearch.PLAN_FREELY,
        "answer by plan": plansearch.ANSWER,
        "sneaky": decoys.SNEAKY,
        "helpful": pvg.HELPFUL,
        "review": pvg.REVIEW,
        "complete": rstar.COMPLETE,
        **{action.name.lower(): text for action, text in rstar.REQUESTS.items()},
        "describe": rto.DESCRIBE,
        "merge": rto.MERGE,
        "find": leap.FIND,
        "attempt": leap.SOLVE,
        "diagnose": leap.DIAGNOSE,
        "condense": leap.CONDENSE[:60],
    }
    asked = [name for name, text in requests.items() if text in request]
    assert len(asked) <= 1, asked
    return asked[0] if asked else "rate" if sampling.purpose == "judge" else "solve"


class Fallible(AnsweringLLM):
    """Solves with probability `p`, and judges with probability `q` as is right.

    A refinement keeps a right answer with probability 0.9 and solves anew otherwise. A sneaky
    solution is wrong. The question is always the same; what differs is `rng`.
    """

    def __init__(self, rng: random.Random, p: float, q: float) -> None:
        super().__init__(self._reply)
        self._rng = rng
        self._p = p
        self._q = q

    def _reply(self, chat: Chat, sampling: Sampling) -> str:
        match kind(chat, sampling):
            case "rate":
                is_right = answer_in(chat[-1].text) == RIGHT
                return rating(9 if is_right == (self._rng.random() < self._q) else 2)
            case "sneaky":
                return solution(self._drawn(0.0))
            case "refine" if answer_in(chat[-1].text) == RIGHT and self._rng.random() < 0.9:
                return solution(RIGHT)
            case "observe" | "plan" | "review" | "step" | "subquestion" | "reanswer" | "rephrase":
                return "1. Six sevens.\n2. Seven sixes.\n3. Half of 84."
            case _:
                return solution(self._drawn(self._p))

    def _drawn(self, p: float) -> str:
        if self._rng.random() < p:
            return RIGHT
        return self._rng.choices(WRONG, WRONG_WEIGHTS)[0]


class Unhurried(AnsweringLLM):
    """Gives the same replies as its function, but lets other calls overtake, at random."""

    def __init__(self, answer: Callable[[Chat, Sampling], str], seed: int) -> None:
        super().__init__(answer)
        self._delays = random.Random(seed)

    async def complete(self, chat: Chat, sampling: Sampling, /) -> Completion:
        for _ in range(self._delays.randrange(20)):
            await asyncio.sleep(0)
        return await super().complete(chat, sampling)
