"""The problems of `optillm-hooks eval` for Inspect, graded as `eval` grades them."""

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import messages_from_openai
from inspect_ai.scorer import CORRECT, INCORRECT, Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, generate, solver

from optillm_hooks.evaluation.asking import grade_of
from optillm_hooks.evaluation.problems import problems_of
from optillm_hooks.evaluation.questions import Problem


@task
def problems(tasks: str | list[str], seed: int = 1) -> Task:
    """Return the task; the arguments are `--tasks` and `--seed` of `optillm-hooks eval`."""
    samples = [
        Sample(id=each.id, input=str(each.messages[-1]["content"]), metadata={"number": number})
        for number, each in enumerate(_problems(tasks, seed))
    ]
    return Task(
        dataset=samples,
        setup=conversation(tasks, seed),
        solver=generate(),
        scorer=graded(tasks, seed),
    )


def _problems(tasks: str | list[str], seed: int) -> list[Problem]:
    names = [tasks] if isinstance(tasks, str) else tasks
    return [problem for name in names for problem in problems_of(name, seed)]


# Inspect logs the arguments of a solver and a scorer: the names of the problems are short.


@solver
def conversation(tasks: str | list[str], seed: int) -> Solver:
    """Return what puts the whole conversation in place of its last message."""
    problems = _problems(tasks, seed)

    async def solve(state: TaskState, generate: Generate) -> TaskState:  # noqa: ARG001
        state.messages = await messages_from_openai(problems[state.metadata["number"]].messages)
        return state

    return solve


@scorer(metrics=[accuracy(), stderr()])
def graded(tasks: str | list[str], seed: int) -> Scorer:
    """Return what grades a reply; the explanation tells wrong replies from unread ones."""
    problems = _problems(tasks, seed)

    async def score(state: TaskState, target: Target) -> Score:  # noqa: ARG001
        reply = state.output.completion
        grade = await grade_of(problems[state.metadata["number"]], reply)
        value = CORRECT if grade == "right" else INCORRECT
        return Score(value=value, answer=reply, explanation=grade)

    return score
