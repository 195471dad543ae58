"""Verifies an answer by constraints, which a model writes once and Z3 checks for each answer.

The constraints are as right as the model that writes them. If they leave the answer open, an answer
that meets them passes, but nothing is proven.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from typing import Final

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.errors import UnusableReply
from optillm_hooks.final_answer import final_answers
from optillm_hooks.prompts import ask
from optillm_hooks.sandbox.client import WorkerFailed
from optillm_hooks.services import Services
from optillm_hooks.solver.client import (
    Formalisation,
    FormalisationBroken,
    Report,
    find_formalisation,
    solve,
)
from optillm_hooks.types import Sampling
from optillm_hooks.verifiers.protocol import UNKNOWN, Asked, Check, Verdict

FORMALISE: Final = """\
Do not answer yet. If what the message above asks for follows from constraints (logic, numbers, a \
schedule, a smallest or largest value), state them for Z3: reply with one fenced block marked \
smt2, an SMT-LIB 2 script. What is asked for is one constant named answer, of sort Int, Real, Bool \
or String (in lower case). Declare it and every other unknown, and assert each fact. Add \
(minimize ...) or (maximize ...) where the best is asked for. Do not put in what you think the \
answer is. If constraints cannot decide it, reply with the single word NONE."""

_DECLARED: Final = re.compile(
    r"\(declare-(?:const[ \t\n]{1,9}answer|fun[ \t\n]{1,9}answer[ \t\n]{1,9}\(\))"
    r"[ \t\n]{1,9}(Int|Real|Bool|String)[ \t\n]{0,9}\)"
)
_NUMBER: Final = re.compile(r"[-+]?\d{1,30}(?:\.\d{1,30}|/\d{1,30})?")
_TRUTH: Final = {"yes": "true", "true": "true", "no": "false", "false": "false"}
SOLVING_S: Final = 5.0
MEMORY_MB: Final = 1024


@dataclass(slots=True)
class _ConstraintsCheck(Check):
    asked: Asked
    proves: bool = True
    _script: str = ""
    _sort: str = ""

    async def prepare(self) -> None:
        """Have the model write the constraints; without usable ones nothing is checked."""
        asked, ctx = self.asked, self.asked.ctx
        sampling = Sampling(temperature=0.1, purpose="draft", fields=ctx.no_tool_calls)
        self.proves = False
        with ctx.trace.step("formalisations"):
            reply = await asked.llm.complete(ask(asked.chat, FORMALISE), sampling)
            said = without_reasoning(reply.text)
            work = find_formalisation(said)
            if work is None:
                if "NONE" in said[-200:]:
                    return
                raise UnusableReply("the reply has no formalisation")
            sort = _DECLARED.search(work.text)
            if work.kind != "smtlib" or sort is None:
                raise UnusableReply("the formalisation has no constant named answer")
            if (await _checked(work.text, "")).statuses[-1] != "sat":
                raise UnusableReply("the constraints contradict each other")
        self._script, self._sort, self.proves = work.text, sort[1], True

    async def verify(self, answer: str) -> Verdict:
        if not self._script:
            return UNKNOWN
        [final] = await final_answers([answer], self.asked.chat, self.asked.ctx)
        value = None if final is None else literal(final, self._sort)
        if value is None:
            return UNKNOWN
        report = await _checked(self._script, value)
        free, it, others = report.statuses[-3:]
        best, its_best, best_of_others = report.results[-3:]
        if "unknown" in (free, it):
            return UNKNOWN
        if it == "unsat" or its_best != best:
            return Verdict("fail", 0.0)
        only = others == "unsat" or (others == "sat" and best_of_others != best)
        return Verdict("pass", 1.0, proven=only)


async def _checked(script: str, value: str) -> Report:
    """Return Z3's report on the constraints; with `value`, also with that answer and without it.

    Raises:
        UnusableReply: Z3 cannot read them, or needs too much time or memory.
    """
    claims = [f"(= answer {value})", f"(not (= answer {value}))"] if value else []
    lines = ["(check-sat)", *(f"(push 1)(assert {each})(check-sat)(pop 1)" for each in claims)]
    text = "\n".join([script, *lines])
    try:
        return await solve(Formalisation("smtlib", text), seconds=SOLVING_S, memory_mb=MEMORY_MB)
    except (FormalisationBroken, WorkerFailed) as exc:
        raise UnusableReply("Z3 cannot check the constraints") from exc


def literal(final: str, sort: str) -> str | None:
    """Return a final answer as a literal of a sort of SMT-LIB, or None if it is none."""
    text = final.strip().strip("$*`").strip()
    if sort == "Bool":
        return _TRUTH.get(text.casefold().rstrip("."))
    if sort == "String":
        quoted = text.casefold().replace('"', '""')
        return f'"{quoted}"' if quoted.isprintable() and len(quoted) <= 200 else None
    text = text.replace(",", "").replace("\u2212", "-")
    found = _NUMBER.match(text)
    if found is None or any(map(str.isdigit, text[found.end() :])):
        return None
    try:
        number = Fraction(found[0])
    except ZeroDivisionError:
        return None
    size = abs(number)
    as_whole = sort == "Int" and size.denominator == 1
    term = f"{size}" if as_whole else f"(/ {size.numerator}.0 {size.denominator}.0)"
    return f"(- {term})" if number < 0 else term


class Constraints:
    """The verifier `z3`."""

    automatic = False

    def missing(self, _: Services) -> str:
        return "" if find_spec("z3") else 'pip install "optillm-hooks[solver]"'

    async def check_for(self, asked: Asked) -> Check | None:
        return None if self.missing(asked.ctx.services) else _ConstraintsCheck(asked)
