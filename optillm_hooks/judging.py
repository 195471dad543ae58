"""LLM as a judge: asks a model to rate answers or to choose among them, and reads its verdicts.

The judge sees the whole conversation, and the candidates as data: between lines that carry a mark
made for this request, so that no candidate can give the judge instructions. If a verdict cannot be
parsed, the judge is asked once more. A second unreadable verdict is ignored: it counts neither as a
zero nor as a vote for the first candidate.
"""

import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from random import Random
from statistics import fmean
from typing import Final, NamedTuple, TypeVar

from optillm_hooks.answers.extraction import read_json, without_reasoning
from optillm_hooks.context import Context
from optillm_hooks.errors import BudgetExceeded, DeadlineExceeded, SampleError
from optillm_hooks.fanout import finished, outcomes
from optillm_hooks.llm import LLM
from optillm_hooks.prompts import ask, data_notice, enclose, fence, follow_up
from optillm_hooks.types import Chat, Sampling

V = TypeVar("V")

BEST: Final = "answers the user's last message best: correct first of all, then complete and clear"
MOST_CONSISTENT: Final = (
    "agrees most with the others: whose conclusions the largest number of them share"
)
"""The criterion of universal self-consistency (Chen et al. 2023, arXiv:2311.17311, section 3)."""

JUDGING: Final = Sampling(temperature=0.1, purpose="judge")
_LABEL = "answer"
_COMMON_SCALES = frozenset({5.0, 10.0, 20.0, 100.0})
_MAX_READ_LENGTH = 20_000
"""Characters of a verdict that are read, from its end."""

_VALUE = r"([-+\u2212]?(?:\d+(?:\.\d+)?|\.\d+)|nan|inf(?:inity)?)"
_OUT_OF = r"(?:\s*(?:/|out\s+of|of)\s*(\d+(?:\.\d+)?)(?!\s*/)|\s*(%))?"
_TO = r"(?:\s*(?:-|\u2013|to)\s*(\d+(?:\.\d+)?))?"
_WRAP = r"[\s*_`\[\]({:=\"'#]*"
_BEFORE = r"[ \t*_`\[({:=\"'#>]*"
_AFTER = r"(?![\w])(?!\.\d)(?!,\d)(?!\s*/)"
_LABELLED = re.compile(
    rf"\b(?P<label>rating|score|grade|mark|verdict|overall)\b(?:\s+(?:is|of|would be))?{_WRAP}"
    rf"(?:-\s+)?{_VALUE}{_TO}[*_`\])}}]*{_OUT_OF}{_AFTER}",
    re.IGNORECASE,
)
_GIVEN = re.compile(
    r"\b(?:give|gives|rate|rated|assign|award|deserves|merits|earns)\b(?:\s+(?:it|this|that|the|"
    rf"answer|response|a|an|as|at|to|full|only|just|about|score|rating|of))*{_WRAP}{_VALUE}{_TO}"
    rf"[*_`\])}}]*{_OUT_OF}{_AFTER}",
    re.IGNORECASE,
)
_FRACTION = re.compile(
    r"(?<![\d.,/\w-])(\d+(?:\.\d+)?)[*_`]*\s*(?:/|out\s+of)\s*[*_`]*(\d+(?:\.\d+)?)(?![\d/]|\.\d)",
    re.IGNORECASE,
)
_ALONE = re.compile(
    rf"^(?:-[ ])?{_BEFORE}{_VALUE}{_TO}[*_`\])}}\"']*{_OUT_OF}[ \t*_`\])}}\"'.!]*"
    r"(?:points?|stars?)?[ \t.*]*$",
    re.IGNORECASE | re.MULTILINE,
)
_RATING_KEYS = ("rating", "score", "grade", "overall")

_NOUNS = r"(?:answer|response|candidate|solution|option|choice|number|one|no\.?|is|the|as|to|be)"
_CHOSEN = re.compile(
    rf"\b(?:best|winner|winning|choice|verdict|decision|selected|select|choose|pick|prefer)\b"
    rf"(?:{_WRAP}{_NOUNS}\b)*{_WRAP}(\d+)(?![\w.]\d|\w)",
    re.IGNORECASE,
)
_NUMBER_ALONE = re.compile(
    rf"^{_BEFORE}(?:{_NOUNS}\b{_BEFORE})*(\d+)[ \t*_`\])}}\"'.]*$", re.IGNORECASE | re.MULTILINE
)
_WHOLE_NUMBER = re.compile(r"(?<![\w.,/-])(\d+)(?![\w/-]|[.,]\d)")
_CHOICE_KEYS = ("best", "choice", "winner", "answer", "selected", "index", "number")


def read_rating(text: str, low: float = 0.0, high: float = 10.0) -> float | None:
    """Return the rating from `low` to `high` in a judge's `text`, or None if there is none.

    The forms it reads, in order of preference: JSON with a rating or score; a labelled number (the
    last one, but "overall" before others); "I give it an 8"; "8/10" and "8 out of 10"; a line with
    only a number. A rating out of another number is scaled: 4/5 is 8 of 10. A range counts as its
    middle. A number that is not finite or not on the scale is no rating, and neither is a number
    of something else, such as a year.
    """
    text = without_reasoning(text)[-_MAX_READ_LENGTH:]
    value = read_json(text)
    if isinstance(value, dict):
        named = {str(name).lower(): item for name, item in value.items()}
        found = next((named[key] for key in _RATING_KEYS if key in named), None)
        return _on_scale(str(found), None, None, low, high)
    labelled = list(_LABELLED.finditer(text))
    overall = [found for found in labelled if found["label"].lower() == "overall"]
    for said in (overall[-1:], labelled[-1:], list(_GIVEN.finditer(text))[-1:]):
        for found in said:
            number, upper, scale, percent = found.groups()[-4:]
            return _on_scale(number, upper, "100" if percent else scale, low, high)
    for number, scale in reversed(_FRACTION.findall(text)):
        if float(scale) in _COMMON_SCALES | {high}:
            return _on_scale(number, None, scale, low, high)
    for number, upper, scale, percent in reversed(_ALONE.findall(text)):
        return _on_scale(number, upper, "100" if percent else scale, low, high)
    return None


def _on_scale(
    number: str, upper: str | None, scale: str | None, low: float, high: float
) -> float | None:
    try:
        rating = float(number.replace("\u2212", "-"))
        rating = (rating + float(upper)) / 2 if upper else rating
        if scale and float(scale) != high:
            rating = low + rating / float(scale) * (high - low)
    except (ValueError, ZeroDivisionError):
        return None
    return rating if low <= rating <= high else None


def read_choice(text: str, count: int) -> int | None:
    """Return the index, from 0, of the candidate that a judge's `text` chooses, or None.

    The forms it reads, in order of preference: JSON with the choice; the last number called best,
    chosen or the winner; a last line with only a number; the only number from 1 to `count`.
    """
    text = without_reasoning(text)[-_MAX_READ_LENGTH:]
    value = read_json(text)
    if isinstance(value, dict):
        named = {str(name).lower(): item for name, item in value.items()}
        chosen = str(next((named[key] for key in _CHOICE_KEYS if key in named), ""))
        return _in_range(int(chosen), count) if re.fullmatch(r"\d{1,9}", chosen) else None
    for pattern in (_CHOSEN, _NUMBER_ALONE):
        if found := pattern.findall(text):
            return _in_range(int(found[-1][:9]), count)
    mentioned = {_in_range(int(number[:9]), count) for number in _WHOLE_NUMBER.findall(text)}
    mentioned.discard(None)
    return mentioned.pop() if len(mentioned) == 1 else None


def _in_range(number: int, count: int) -> int | None:
    return number - 1 if 1 <= number <= count else None


class Chosen(NamedTuple):
    winner: int | None
    """The candidate chosen most often (the first of a tie), or None without a readable verdict."""

    votes: list[int]
    """How often each was chosen."""


async def rate_all(
    candidates: Sequence[str],
    chat: Chat,
    judge: LLM,
    ctx: Context,
    *,
    repeats: int = 1,
    low: float = 0.0,
    high: float = 10.0,
    sampling: Sampling = JUDGING,
    until: float | None = None,
) -> list[float | None]:
    """Return the rating of each candidate answer to `chat`, None where there is none.

    Each candidate gets `repeats` calls of its own, all run concurrently, and the mean of the
    readable ratings. From `until` on, ratings that are still missing are given up.
    """
    prompts = [_rating_prompt(chat, text, fence(ctx.rng), low, high) for text in candidates]
    plea = f"Give the rating alone: one number from {low:g} to {high:g}."

    def rating(prompt: Chat, repeat: int) -> Callable[[], Awaitable[float | None]]:
        def read(text: str) -> float | None:
            return read_rating(text, low, high)

        made = replace(sampling, sample=repeat)
        return lambda: _ask_twice(judge, prompt, made, read, plea)

    ended = await outcomes(
        [rating(prompt, repeat) for prompt in prompts for repeat in range(repeats)], until=until
    )
    ratings = [None if isinstance(outcome, SampleError) else outcome for outcome in ended]
    of_each = [ratings[at : at + repeats] for at in range(0, len(ratings), repeats)]
    readable = [[rating for rating in some if rating is not None] for some in of_each]
    return [fmean(some) if some else None for some in readable]


async def choose(
    candidates: Sequence[str],
    chat: Chat,
    judge: LLM,
    ctx: Context,
    *,
    criterion: str = BEST,
    orders: int = 1,
    sampling: Sampling = JUDGING,
) -> Chosen:
    """Return the candidate answer to `chat` that the judge chooses by `criterion`.

    The judge is asked `orders` times concurrently: with the candidates in a random order, in its
    reverse, in another random order, and so on. So position bias cancels out.
    """
    plea = f"Name your choice alone: one number from 1 to {len(candidates)}."

    def comparison(order: Sequence[int]) -> Callable[[], Awaitable[int | None]]:
        shown = [candidates[at] for at in order]
        prompt = _choice_prompt(chat, shown, fence(ctx.rng), criterion)

        def read(text: str) -> int | None:
            place = read_choice(text, len(order))
            return None if place is None else order[place]

        return lambda: _ask_twice(judge, prompt, sampling, read, plea)

    calls = [comparison(order) for order in _orders(len(candidates), orders, ctx.rng)]
    votes = Counter(choice for choice in await finished(calls) if choice is not None)
    of_each = [votes[at] for at in range(len(candidates))]
    return Chosen(of_each.index(max(of_each)) if votes else None, of_each)


def _orders(count: int, orders: int, rng: Random) -> list[list[int]]:
    made: list[list[int]] = []
    for number in range(orders):
        made.append(made[-1][::-1] if number % 2 else rng.sample(range(count), count))
    return made


async def _ask_twice(
    judge: LLM, prompt: Chat, sampling: Sampling, read: Callable[[str], V | None], plea: str
) -> V | None:
    """Return the verdict in the judge's reply, or else in a second reply, or None.

    After a failure the second call sets no temperature, because some models refuse any but their
    own.
    """
    try:
        said = without_reasoning((await judge.complete(prompt, sampling)).text)
    except (BudgetExceeded, DeadlineExceeded):
        return None
    except SampleError:
        again, sampling = prompt, replace(sampling, temperature=None)
    else:
        verdict = read(said)
        if verdict is not None:
            return verdict
        again = follow_up(prompt, said, plea) if said else prompt
    try:
        return read((await judge.complete(again, sampling)).text)
    except SampleError:
        return None


def _rating_prompt(chat: Chat, candidate: str, mark: str, low: float, high: float) -> Chat:
    return ask(
        chat,
        f"""\
The conversation ends here; do not continue it. Below is an answer that was given to its last \
message. {data_notice(_LABEL, mark)}

{_enclosed([candidate], mark)}

Rate that answer from {low:g} (wrong or useless) to {high:g} (could not be better). What counts \
is whether it is correct, then whether it is complete, then whether it is clear. Check what it \
claims instead of trusting its tone. You may think first. End with a line of its own:
RATING: <number>""",
    )


def _choice_prompt(chat: Chat, candidates: Sequence[str], mark: str, criterion: str) -> Chat:
    return ask(
        chat,
        f"""\
The conversation ends here; do not continue it. Below are {len(candidates)} answers that were \
given to its last message, in no particular order. {data_notice(_LABEL, mark)}

{_enclosed(candidates, mark)}

Say which of them {criterion}. Compare what they claim, not their length or tone. You may think \
first. End with a line of its own:
BEST: <number>""",
    )


def _enclosed(candidates: Sequence[str], mark: str) -> str:
    """Return the candidates as data, without their reasoning, which the judge is not to rate."""
    return enclose([without_reasoning(text) or text for text in candidates], _LABEL, mark)
