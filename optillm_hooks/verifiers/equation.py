"""Verifies an answer to an equation or to arithmetic by SymPy's exact solutions.

The equation is read from the request, in code (`answers.equations`), and solved once, in a worker.
An answer passes if it gives solutions only; if it gives all real ones, that is a proof.
"""

import json
import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from optillm_hooks.answers.equations import Posed, count_solved, read_posed
from optillm_hooks.errors import UnusableReply
from optillm_hooks.final_answer import final_answers
from optillm_hooks.prompts import question
from optillm_hooks.reading import read_or
from optillm_hooks.sandbox.client import WorkerFailed
from optillm_hooks.services import Services
from optillm_hooks.solver.client import Formalisation, FormalisationBroken, solve
from optillm_hooks.types import Json
from optillm_hooks.verifiers.protocol import UNKNOWN, Asked, Check, Verdict

_IMAGINARY: Final = re.compile(r"\bI\b")
SOLVING_S: Final = 5.0
MEMORY_MB: Final = 1024


@dataclass(frozen=True, slots=True)
class _SolutionCheck(Check):
    asked: Asked
    variables: list[str]
    solutions: list[dict[str, str]]
    proves: bool = True

    async def verify(self, answer: str) -> Verdict:
        [final] = await final_answers([answer], self.asked.chat, self.asked.ctx)
        if final is None:
            return UNKNOWN
        counted = await read_or(
            None, self.asked.ctx, count_solved, final, self.variables, self.solutions
        )
        if counted is None:
            return UNKNOWN
        right, wrong = counted
        share = right / (wrong + len(self.solutions)) if right else 0.0
        return Verdict(
            "pass" if right and not wrong else "fail",
            share,
            proven=not wrong and right == len(self.solutions),
        )


class Equation:
    """The verifier `sympy`."""

    automatic = True

    def missing(self, _: Services) -> str:
        return "" if find_spec("sympy") else 'pip install "optillm-hooks[solver]"'

    async def check_for(self, asked: Asked) -> Check | None:
        if self.missing(asked.ctx.services):
            return None
        posed = await read_or(None, asked.ctx, read_posed, question(asked.chat))
        if posed is None:
            return None
        solutions = await _solutions(posed)
        return _SolutionCheck(asked, posed.variables, solutions) if solutions else None


async def _solutions(posed: Posed) -> list[dict[str, str]]:
    """Return the solutions by variable, or the value under ""; none if there is no complete list.

    Complex solutions count only if there are no real ones.

    Raises:
        UnusableReply: SymPy does not find them within its limits.
    """
    step: dict[str, Json] = {
        "operation": "solve" if posed.variables else "evaluate",
        "expressions": [*posed.formulas],
        "variables": [*posed.variables],
    }
    try:
        work = Formalisation("algebra", json.dumps([step]))
        report = await solve(work, seconds=SOLVING_S, memory_mb=MEMORY_MB)
    except (FormalisationBroken, WorkerFailed) as exc:
        raise UnusableReply("SymPy does not solve it") from exc
    [result] = report.results
    if not posed.variables:
        return [{"": result}]
    found = [
        dict(part.split(" = ", 1) for part in each.split(", ") if " = " in part)
        for each in result.split("; ")
    ]
    if any(set(each) != set(posed.variables) for each in found):
        return []
    real = [each for each in found if not any(_IMAGINARY.search(v) for v in each.values())]
    return real or found
