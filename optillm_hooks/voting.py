"""Votes over answers. Pure functions; a tie goes to what an earlier call said."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeVar

from optillm_hooks.answers import AnswerFormat, extract_answer, read_json
from optillm_hooks.equivalence import classes, json_key
from optillm_hooks.types import Answer, Sampling

A = TypeVar("A", bound=Answer)


class Tally(NamedTuple):
    winner: int
    """Index of the first that voted for the winner; 0 when nobody voted."""

    votes: dict[str, int]
    """What was voted for, as the first who did wrote it, in that order."""


def majority(answers: Sequence[str | None]) -> Tally:
    """Return the answer that most are equivalent to; None does not vote."""
    return _tally(classes(answers), ["" if answer is None else answer for answer in answers])


def elect(
    candidates: Sequence[Answer],
    how: AnswerFormat = "auto",
    *,
    question: str = "",
    as_json: bool = False,
) -> Tally:
    """Return the vote of `candidates`, by what they are: tool calls, JSON, or texts with answers.

    Whether a tool is called is voted on first; those who lose that vote do not take part in the
    next. `how` and `question` are as in `extract_answer`.
    """
    if prefer_tools(candidates):
        return majority_call(candidates)
    texts = [None if candidate.tool_calls else candidate.text for candidate in candidates]
    if as_json:
        return majority_object(texts)
    return majority(
        [None if text is None else extract_answer(text, how, question=question) for text in texts]
    )


def contenders(candidates: Sequence[A]) -> list[A]:
    """Return those that were not cut off, or all if every one was."""
    return [c for c in candidates if not c.truncated] or list(candidates)


def prefer_tools(candidates: Sequence[Answer]) -> bool:
    """Return whether most call a tool; a tie goes as the first candidate does."""
    calling = sum(bool(candidate.tool_calls) for candidate in candidates)
    if 2 * calling == len(candidates):
        return bool(candidates) and bool(candidates[0].tool_calls)
    return 2 * calling > len(candidates)


def majority_call(candidates: Sequence[Answer]) -> Tally:
    """Return the vote on tool calls: the tools' names first, among the winners the arguments.

    Arguments are compared as JSON. What is no JSON object gets no vote, and wins only if no call of
    the winning tools has any. The order of parallel calls does not matter.
    """
    names = [tuple(sorted(call.name for call in c.tool_calls)) or None for c in candidates]
    first = _tally(names, list(map(str, names))).winner
    keys = [
        _calls_key(candidate) if name is not None and name == names[first] else None
        for name, candidate in zip(names, candidates, strict=True)
    ]
    written = [
        "; ".join(f"{call.name}({call.arguments})" for call in c.tool_calls) for c in candidates
    ]
    tally = _tally(keys, written)
    return tally if tally.votes else Tally(first, {})


def majority_object(texts: Sequence[str | None]) -> Tally:
    """Return the vote on JSON texts; what is no object or array does not vote.

    An object that most voters agree on wins. If there is none and all are objects with the same
    keys, it is the one that agrees with the most frequent value in the most fields, the more
    frequent of these first. Else it is the most frequent.
    """
    values = [None if text is None else read_json(text) for text in texts]
    keys = [None if value is None else json_key(value) for value in values]
    tally = _tally(keys, [text or "" for text in texts])
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


def json_is_asked(client: Sampling) -> bool:
    """Return whether the client wants its answer as JSON."""
    wanted = client.fields.get("response_format")
    return isinstance(wanted, dict) and wanted.get("type") in ("json_object", "json_schema")


def _calls_key(candidate: Answer) -> Hashable:
    keys: list[tuple[str, Hashable]] = []
    for call in candidate.tool_calls:
        arguments = read_json(call.arguments or "{}")
        if not isinstance(arguments, dict):
            return None
        keys.append((call.name, json_key(arguments)))
    return frozenset(Counter(keys).items())


def _tally(ballots: Sequence[Hashable], written: Sequence[str]) -> Tally:
    """Return the vote of `ballots`, None among which do not count; `written` names them."""
    counts = Counter(ballot for ballot in ballots if ballot is not None)
    if not counts:
        return Tally(0, {})
    # A counter keeps the order in which its keys came: of equal ones, the first is first.
    best, _ = counts.most_common(1)[0]
    votes: dict[str, int] = {}
    for ballot, count in counts.items():
        name = written[ballots.index(ballot)]
        votes[name] = votes.get(name, 0) + count
    return Tally(ballots.index(best), votes)
