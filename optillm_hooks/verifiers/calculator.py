"""Verifies the arithmetic that an answer shows, such as "12 * 34 = 408", with exact fractions."""

from dataclasses import dataclass

from optillm_hooks.answers.arithmetic import checked_claims
from optillm_hooks.context import Context
from optillm_hooks.reading import read_or
from optillm_hooks.services import Services
from optillm_hooks.verifiers.protocol import UNKNOWN, Asked, Check, Verdict


@dataclass(frozen=True, slots=True)
class _ClaimsCheck(Check):
    ctx: Context

    async def verify(self, answer: str) -> Verdict:
        claims = await read_or([], self.ctx, checked_claims, answer)
        if not claims:
            return UNKNOWN
        share = sum(claims) / len(claims)
        return Verdict("pass" if share == 1 else "fail", share)


class Calculator:
    """The verifier `calculator`."""

    automatic = True

    def missing(self, _: Services) -> str:
        return ""

    async def check_for(self, asked: Asked) -> Check | None:
        return _ClaimsCheck(asked.ctx)
