"""Problems that models are compared on: generated, of known sets, or the operator's own."""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from yaml import YAMLError

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.config_files import CannotRun
from optillm_hooks.evaluation import worked_examples
from optillm_hooks.evaluation.grading import Grade, Grader
from optillm_hooks.evaluation.known_sets import KNOWN_SETS
from optillm_hooks.evaluation.number_puzzles import solves
from optillm_hooks.evaluation.questions import NO_GRADERS, Graders, Problem, question_of
from optillm_hooks.evaluation.rows import lines_of, rows_of_file, text_of

REASONING_GYM: Final = (
    "basic_arithmetic", "calendar_arithmetic", "chain_sum", "countdown", "family_relationships",
    "gsm_symbolic", "knights_knaves", "letter_counting", "mini_sudoku", "puzzle24", "syllogism",
    "word_sorting", "zebra_puzzles",
)  # fmt: skip
"""Families of reasoning-gym whose verifiers accept right answers and refuse wrong ones.

Left out are families whose verifiers accept nonsense or fail, such as `game_of_life_halting`,
`prime_factorization` and `figlet_font`. Of `countdown` and `puzzle24` only the problems are used.
"""

_DEFAULT_COUNT: Final = 50
_DRAWS: Final = 20
"""How many problems are drawn for each that is kept: equal ones are left out."""


def problems_of(task: str, seed: int, graders: Graders = NO_GRADERS) -> list[Problem]:
    """Return the problems of a task.

    Args:
        task: `worked_examples`, `one_step`, `reasoning_gym/FAMILY`, a known set, `SET=FILE` for a
            known set in a file, or the path of a file of one's own; `:N` at the end takes N
            problems. Generated tasks have 50 by default, sets and files have all.
        seed: chooses the problems.
        graders: what the checks of a file need.

    Raises:
        CannotRun: there is no such task, it cannot be read, or `graders` lacks something.
    """
    name, _, number = task.rpartition(":") if re.search(r":\d+$", task) else (task, "", "")
    count = int(number) if number else None
    if count == 0:
        raise CannotRun(f"{task}: at least one problem is needed")
    if (make := _GENERATED.get(name)) is not None:
        return _generated(name, make, seed, count or _DEFAULT_COUNT)
    if name.startswith("reasoning_gym/"):
        return _from_gym(name.partition("/")[2], seed, count or _DEFAULT_COUNT)
    known, _, file = name.partition("=")
    if known in KNOWN_SETS:
        return _sampled([*_of_set(known, file, graders)], seed, count)
    return _sampled(_from_file(Path(name), graders), seed, count)


_GENERATED: Final[dict[str, Callable[[random.Random], worked_examples.Problem]]] = {
    "worked_examples": worked_examples.shown,
    "one_step": worked_examples.bare,
}


def _generated(
    name: str, make: Callable[[random.Random], worked_examples.Problem], seed: int, count: int
) -> list[Problem]:
    rng = random.Random(f"{name} {seed}")  # noqa: S311 (problems, not secrets)
    drawn = dict[str, worked_examples.Problem]()
    for _ in range(_DRAWS * count):
        problem = make(rng)
        drawn.setdefault(problem.messages[-1]["content"], problem)
        if len(drawn) == count:
            break
    else:
        raise CannotRun(f"{name} has fewer than {count} different problems")
    return [
        Problem(f"{name}/{seed}/{index}", [*each.messages], _LastNumber(each.answer))
        for index, each in enumerate(drawn.values())
    ]


@dataclass(frozen=True, slots=True)
class _LastNumber:
    """Right if the last number of the reply is the answer; worked examples end so."""

    answer: int

    def __call__(self, reply: str) -> Grade:
        said = worked_examples.last_number(without_reasoning(reply))
        if said is None:
            return "unread"
        return "right" if said == self.answer else "wrong"


def _from_gym(family: str, seed: int, count: int) -> list[Problem]:
    if family not in REASONING_GYM:
        raise CannotRun(
            f"reasoning_gym/{family}: not a family that can be graded; "
            f"known: {', '.join(REASONING_GYM)}"
        )
    try:
        gym = import_module("reasoning_gym")
    except ImportError:
        raise CannotRun(
            f"reasoning_gym/{family} needs the extra eval: pip install 'optillm-hooks[eval]'"
        ) from None
    dataset = gym.create_dataset(family, seed=seed, size=count)
    return [
        Problem(
            f"reasoning_gym/{family}/{seed}/{index}",
            [{"role": "user", "content": f"{entry['question']}\n\n{_FINAL_ANSWER}"}],
            _gym_grader(family, dataset, entry),
        )
        for index, entry in enumerate(dataset)
    ]


_FINAL_ANSWER: Final = "Put the answer alone between <answer> and </answer> at the end."


def _gym_grader(family: str, dataset: Any, entry: dict[str, Any]) -> Grader:
    """Return the family's own verifier, or ours where that runs a reply as Python."""
    told = entry.get("metadata", {})
    match family:
        case "countdown":
            return _Tagged(partial(solves, numbers=told["numbers"], value=told["target"]))
        case "puzzle24":
            return _Tagged(partial(solves, numbers=told["numbers"], value=24))
        case _:
            return _Tagged(partial(_gym_agrees, dataset, entry))


def _gym_agrees(dataset: Any, entry: dict[str, Any], answer: str) -> bool:
    """Return whether a family's verifier gives an answer its full score."""
    try:
        return bool(dataset.score_answer(answer, entry) >= 1.0)
    except Exception:  # any, by another package that reads what a model has written
        return False


@dataclass(frozen=True, slots=True)
class _Tagged:
    """Right if what stands between the last tags is."""

    is_right: Callable[[str], bool]

    def __call__(self, reply: str) -> Grade:
        _, tag, rest = without_reasoning(reply).rpartition("<answer>")
        said, end, _ = rest.partition("</answer>")
        if not tag or not end:
            return "unread"
        return "right" if self.is_right(said.strip()) else "wrong"


def _of_set(name: str, file: str, graders: Graders) -> Iterator[Problem]:
    """Yield the problems of a known set, from its own source or from a file."""
    known = KNOWN_SETS[name]
    rows = rows_of_file(Path(file)) if file else enumerate(known.source.rows(name), 1)
    place = f"{file}, line" if file else f"{name}, row"
    for number, row in rows:
        where = f"{place} {number}"
        try:
            fields = known.fields(row) if known.has(row) else None
        except KeyError as exc:
            raise CannotRun(f"{where}: lacks the column {exc}") from None
        except (AttributeError, IndexError, TypeError, YAMLError):
            raise CannotRun(f"{where}: its columns do not hold what those of {name} do") from None
        if fields is not None:
            yield question_of(fields, where).problem(f"{name}/{number}", graders)


def _from_file(path: Path, graders: Graders) -> list[Problem]:
    try:
        text = text_of(path)
    except CannotRun as exc:
        if path.exists():
            raise
        names = ", ".join([*_GENERATED, "reasoning_gym/FAMILY", *KNOWN_SETS])
        raise CannotRun(f"{exc}, and no task has that name; known: {names}") from None
    found = [
        question_of(line, f"{path}, line {number}").problem(f"{path.name}/{number}", graders)
        for number, line in lines_of(text)
    ]
    if not found:
        raise CannotRun(f"{path} has no questions")
    return found


def _sampled(problems: list[Problem], seed: int, count: int | None) -> list[Problem]:
    if count is None or count >= len(problems):
        return problems
    rng = random.Random(f"sample {seed}")  # noqa: S311
    return [problems[index] for index in sorted(rng.sample(range(len(problems)), count))]
