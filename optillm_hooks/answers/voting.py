"""Majority voting over answers. Pure functions; ties go to the earlier call."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeVar

from optillm_hooks.answers.equivalence import classes, json_key
from optillm_hooks.answers.extraction import AnswerFormat, extract_answers, read_json
from optillm_hooks.answers.response_format import is_json_mode
from optillm_hooks.types import Answer, Sampling

A = TypeVar("A", bound=Answer)


class Tally(NamedTuple):
    winner: int
    """Index of the first vote for the winner; 0 if there are no votes."""

    votes: dict[str, int]
    """Number of votes by answer, spelled as in its first vote, in order of first votes."""


def majority(answers: Sequence[str | None]) -> Tally:
    """Return the majority vote over answers; equivalent answers are one, None does not vote."""
    return _tally(classes(answers), ["" if answer is None else answer for answer in answers])


def contenders(candidates: Sequence[A]) -> list[A]:
    """Return the candidates to choose from: either all with tool calls or all without.

    Truncated candidates are left out, unless all are truncated. Of the rest, the majority remains:
    those with tool calls or those without. A tie goes to the kind of the first candidate.
    """
    whole = [c for c in candidates if not c.truncated] or list(candidates)
    calling = [c for c in whole if c.tool_calls]
    talking = [c for c in whole if not c.tool_calls]
    if len(calling) == len(talking):
        return calling if whole and whole[0].tool_calls else talking
    return calling if len(calling) > len(talking) else talking


def elect(
    texts: Sequence[str], how: AnswerFormat = "auto", *, question: str = "", as_json: bool = False
) -> Tally:
    """Return the majority vote of the texts of `contenders`, on JSON or extracted answers.

    `how` and `question`: see `extract_answer`. If fewer than half of the texts have a readable
    answer, there are no votes: a readable minority does not decide.
    """
    if as_json:
        return majority_object(texts)
    answers = extract_answers(texts, how, question=question)
    if 2 * answers.count(None) > len(answers):
        return Tally(0, {})
    return majority(answers)


def equal_answers(
    texts: Sequence[str], how: AnswerFormat = "auto", *, question: str = "", as_json: bool = False
) -> list[int | None]:
    """Return for each text the index of the first with the same answer; None if it has none.

    Answers are those of `extract_answers`, or the texts as JSON.
    """
    if not as_json:
        return classes(extract_answers(texts, how, question=question))
    values = [read_json(text) for text in texts]
    first: dict[Hashable, int] = {}
    for at, value in enumerate(values):
        if value is not None:
            first.setdefault(json_key(value), at)
    return [None if value is None else first[json_key(value)] for value in values]


Calls = Sequence[tuple[str, str]]
"""The tool calls of a candidate: the name and the arguments of each."""


def majority_call(candidates: Sequence[Calls]) -> Tally:
    """Return the majority vote on tool calls: first on the names, then on the arguments.

    Arguments are compared as JSON. Calls whose arguments are not a JSON object do not vote on them,
    and win only if there are no others. The order of parallel calls does not matter.
    """
    names = [tuple(sorted(name for name, _ in calls)) for calls in candidates]
    first = _tally(names, list(map(str, names))).winner
    keys = [
        _calls_key(calls) if names_called == names[first] else None
        for names_called, calls in zip(names, candidates, strict=True)
    ]
    tally = _tally(keys, ["; ".join(f"{n}({args})" for n, args in calls) for calls in candidates])
    return tally if tally.votes else Tally(first, {})


def majority_object(texts: Sequence[str]) -> Tally:
    """Return the majority vote on JSON texts; texts that are not objects or arrays do not vote.

    A value with more than half of the votes wins. Otherwise, if all are objects with the same keys,
    the winner is the object with the most frequent value in the largest number of fields; a tie
    goes to the more frequent object. In all other cases the most frequent value wins.
    """
    values = [read_json(text) for text in texts]
    keys = [None if value is None else json_key(value) for value in values]
    tally = _tally(keys, texts)
    voters = [at for at, value in enumerate(values) if value is not None]
    objects = {at: value for at in voters if isinstance(value := values[at], dict)}
    if 2 * max(tally.votes.values(), default=0) > len(voters) or len(objects) < len(voters):
        return tally
    if len({frozenset(value) for value in objects.values()}) != 1:
        return tally
    agreements = Counter[int]()
    for name in objects[voters[0]]:
        fields = {at: json_key(value[name]) for at, value in objects.items()}
        usual, _ = Counter(fields.values()).most_common(1)[0]
        agreements.update(at for at, field in fields.items() if field == usual)
    sizes = Counter(keys)
    best = max(voters, key=lambda at: (agreements[at], sizes[keys[at]], -at))
    return Tally(best, tally.votes)


def leaders(ratings: Sequence[float | None]) -> list[int]:
    """Return the indices of the highest ratings, or all indices if there are no ratings."""
    highest = max((rating for rating in ratings if rating is not None), default=None)
    return [at for at, rating in enumerate(ratings) if rating == highest]


def wants_json(client: Sampling) -> bool:
    """Return True if the client requests JSON mode or structured outputs."""
    return is_json_mode(client.fields.get("response_format"))


def _calls_key(calls: Calls) -> Hashable:
    keys: list[tuple[str, Hashable]] = []
    for name, written in calls:
        arguments = read_json(written or "{}")
        if not isinstance(arguments, dict):
            return None
        keys.append((name, json_key(arguments)))
    return frozenset(Counter(keys).items())


def _tally(ballots: Sequence[Hashable], written: Sequence[str]) -> Tally:
    """Return the majority vote of `ballots`; None does not vote. `written`: their names."""
    counts = Counter(ballot for ballot in ballots if ballot is not None)
    if not counts:
        return Tally(0, {})
    # A Counter keeps insertion order, and most_common returns the first of equal counts.
    best, _ = counts.most_common(1)[0]
    first: dict[Hashable, int] = {}
    for at, ballot in enumerate(ballots):
        first.setdefault(ballot, at)
    votes: dict[str, int] = {}
    for ballot, count in counts.items():
        name = written[first[ballot]]
        votes[name] = votes.get(name, 0) + count
    return Tally(first[best], votes)
