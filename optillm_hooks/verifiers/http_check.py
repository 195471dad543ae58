"""Verifies an answer by the operator's own HTTP endpoint.

Only the operator's settings name the endpoint: a request has no way to send the proxy anywhere.
"""

from dataclasses import dataclass
from typing import Final

from optillm_hooks.prompts import question
from optillm_hooks.services import AnswerCheck, Services
from optillm_hooks.verifiers.protocol import Asked, Check, Verdict

_MISSING: Final = "the operator has to set optillm_settings.answer_check.url"


@dataclass(frozen=True, slots=True)
class _HttpCheck(Check):
    ask: AnswerCheck
    question: str
    proves: bool = True

    async def verify(self, answer: str) -> Verdict:
        passed, score = await self.ask(self.question, answer)
        if passed is None:
            return Verdict("unknown", score)
        return Verdict(
            "pass" if passed else "fail",
            float(passed) if score is None else score,
            proven=passed,
        )


class HttpCheck:
    """The verifier `http`. The operator's word on an answer settles it."""

    automatic = True

    def missing(self, services: Services) -> str:
        return "" if services.answer_check else _MISSING

    async def check_for(self, asked: Asked) -> Check | None:
        ask = asked.ctx.services.answer_check
        return None if ask is None else _HttpCheck(ask, question(asked.chat))
