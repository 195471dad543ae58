"""The plans that have ended in this worker of late, for their replay on the page `/optillm`.

They are kept in memory, the newest of them, and without text unless the operator's settings ask for
it. Each belongs to the key that asked for it.
"""

import asyncio
import json
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from litellm.proxy._types import UserAPIKeyAuth

from optillm_hooks.gateway.deployments import proxy_router
from optillm_hooks.gateway.observers import CANCELLED, Ended, Started, Watch, error_code
from optillm_hooks.gateway.operator_settings import read_settings
from optillm_hooks.gateway.reports import notes_json
from optillm_hooks.gateway.services import owner_of
from optillm_hooks.prompts import question
from optillm_hooks.settings import PageSettings
from optillm_hooks.trace import CallRecord, StageRun
from optillm_hooks.types import Json, Usage

MAX_CHARS: Final = 16_000_000
"""What all plans of a worker may take, as JSON."""

MAX_TEXT_CHARS: Final = 20_000
"""What is kept of a question, and of each answer."""

_stage: Final[ContextVar[int | None]] = ContextVar("optillm_kept_stage", default=None)
"""The innermost stage that runs, by its place in the plan; None beside the stages."""

Whose = tuple[Literal["key", "user"], str]
"""A key, by its hash; or a user who has none, as with tokens of a company's own login."""


class KeptPlan(NamedTuple):
    whose: Whose | None
    """None if nobody but an admin may see it."""

    ended_at: float
    """Seconds since 1970."""

    summary: dict[str, Json]
    text: str
    """The whole plan, as JSON."""


class RecentPlans:
    """A store of ended plans, bounded in number and in size. It observes all requests.

    If it is full, the least recently used plan goes of the owner who takes most room: one with many
    requests cannot push out the plans of others.
    """

    def __init__(self, max_chars: int = MAX_CHARS) -> None:
        self._plans: dict[Whose | None, OrderedDict[str, KeptPlan]] = {}
        """Plans by owner and id; in both, the least recently used ones come first."""

        self._chars = Counter[Whose | None]()
        self._max_chars = max_chars

    def begin(self, started: Started, /) -> Watch | None:
        settings = read_settings().page
        if proxy_router() is None or not settings.enabled or not settings.plans:
            return None
        return _Recorder(self, started, settings)

    def keep(self, call_id: str, plan: KeptPlan, max_plans: int) -> None:
        """Keep a plan in place of its owner's with the same id.

        One that is larger than the whole store is not kept.
        """
        if len(plan.text) > self._max_chars:
            return
        before = self._used(plan.whose).pop(call_id, None)
        self._chars[plan.whose] += len(plan.text) - (0 if before is None else len(before.text))
        self._plans[plan.whose][call_id] = plan
        while sum(map(len, self._plans.values())) > max_plans:
            self._drop_of(max(self._plans, key=lambda whose: len(self._plans[whose])))
        while self._chars.total() > self._max_chars:
            self._drop_of(max(self._plans, key=self._chars.__getitem__))

    def _used(self, whose: Whose | None) -> OrderedDict[str, KeptPlan]:
        """Return the plans of an owner, who is the last to have used any."""
        plans = self._plans[whose] = self._plans.pop(whose, OrderedDict())
        return plans

    def _drop_of(self, whose: Whose | None) -> None:
        """Drop the least recently used plan of an owner."""
        _, gone = self._plans[whose].popitem(last=False)
        self._chars[whose] -= len(gone.text)
        if not self._plans[whose]:
            del self._plans[whose], self._chars[whose]

    def summaries(self, whose: Whose | None, *, everyones: bool, limit: int) -> list[Json]:
        """Return the summaries of the plans that a caller may see, the latest first."""
        owners = self._visible(whose, everyones=everyones)
        seen = [plan for owner in owners for plan in self._plans[owner].values()]
        seen.sort(key=lambda plan: plan.ended_at, reverse=True)
        return [plan.summary for plan in seen[:limit]]

    def find(self, call_id: str, whose: Whose | None, *, everyones: bool) -> str | None:
        """Return a plan as JSON and mark it as used; None if the caller has none of that id."""
        for owner in self._visible(whose, everyones=everyones):
            if call_id in self._plans[owner]:
                plans = self._used(owner)
                plans.move_to_end(call_id)
                return plans[call_id].text
        return None

    def _visible(self, whose: Whose | None, *, everyones: bool) -> list[Whose | None]:
        """Return the owners whose plans a caller may see, who used one last first."""
        if everyones:
            return [*reversed(self._plans)]
        return [whose] if whose is not None and whose in self._plans else []


PLANS: Final = RecentPlans()


def whose_of(key: UserAPIKeyAuth | None) -> Whose | None:
    """Return who may see the plans of a key; None if that cannot be told."""
    owner = owner_of(key)
    if owner.key:
        return ("key", owner.key)
    return ("user", owner.user) if owner.user else None


@dataclass(slots=True)
class _Span:
    """A stage while it runs, and afterwards."""

    stage: StageRun
    started_s: float
    seconds: float = 0.0
    outcome: Literal["ok", "failed", "cancelled"] = "ok"


class _Recorder(Watch):
    def __init__(self, plans: RecentPlans, started: Started, settings: PageSettings) -> None:
        self._plans = plans
        self._settings = settings
        self._started = started
        self._trace = started.prepared.trace
        self._calls: list[tuple[CallRecord, int | None]] = []
        self._first_note = len(self._trace.events)
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._spans: list[_Span] = []

    @contextmanager
    def stage(self, stage: StageRun, /) -> Iterator[None]:
        span = _Span(stage, self._clock() - self._began)
        outer = _stage.set(len(self._spans))
        self._spans.append(span)
        try:
            yield
        except BaseException as exc:
            span.outcome = "cancelled" if error_code(exc) == CANCELLED else "failed"
            raise
        finally:
            _stage.reset(outer)
            span.seconds = self._clock() - self._began - span.started_s

    def call_ended(self, call: CallRecord, /) -> None:
        self._calls.append((call, _stage.get()))

    def ended(self, end: Ended, /) -> None:
        ended_at = time.time()
        summary = {**self._summary(end), "ended_at": ended_at}
        plan = {
            **summary,
            "stages": [_stage_json(span) for span in self._spans],
            "model_calls": [_call_json(call, stage) for call, stage in self._calls],
            "notes": notes_json(self._trace.events[self._first_note :]),
            "texts": self._texts(),
        }
        whose = whose_of(self._started.caller.key)
        kept = KeptPlan(whose, ended_at, summary, json.dumps(plan))
        self._plans.keep(self._trace.call_id, kept, self._settings.plans)

    def _summary(self, end: Ended) -> dict[str, Json]:
        prepared, trace = self._started.prepared, self._trace
        calls = [call for call, _ in self._calls]
        usage = sum((call.usage for call in calls), Usage())
        report = None if prepared.outcome is None else prepared.outcome.report
        return {
            "object": "optillm.plan",
            "id": trace.call_id,
            "trace_id": trace.trace_id or None,
            "approach": prepared.plan.text,
            "base_model": prepared.base,
            "route": prepared.route,
            "stream": self._started.stream,
            "n": self._started.request.n,
            "seconds": round(end.seconds, 3),
            "error": end.error or None,
            "stopped_by": trace.stopped_by,
            "degraded": [*(report.degraded if report else ())],
            "choices": [*(report.choices if report else ())],
            "calls": usage.calls,
            "calls_saved": trace.calls_saved,
            "depth": max((call.depth for call in calls), default=0),
            **_usage_json(usage),
        }

    def _texts(self) -> Json:
        """Return question and answers, if the operator keeps them and nothing speaks against it."""
        started = self._started
        prepared, no_log = started.prepared, started.caller.extra.get("no-log")
        secret = prepared.plan.is_confidential or no_log or started.hides_texts
        if not self._settings.texts or secret:
            return None
        answers = () if prepared.outcome is None else prepared.outcome.answers
        return {
            "question": question(self._started.request.chat)[:MAX_TEXT_CHARS],
            "answers": [answer.text[:MAX_TEXT_CHARS] for answer in answers],
        }


def _stage_json(span: _Span) -> dict[str, Json]:
    return {
        "name": span.stage.name,
        "chain": span.stage.chain,
        "run": span.stage.run,
        "started_s": round(span.started_s, 4),
        "seconds": round(span.seconds, 4),
        "outcome": span.outcome,
    }


def _call_json(call: CallRecord, stage: int | None) -> dict[str, Json]:
    return {
        "stage": stage,
        "run": call.run,
        "model": call.model,
        "purpose": call.purpose,
        "depth": call.depth,
        "started_s": round(call.started_s, 4),
        "seconds": round(call.seconds, 4),
        "outcome": call.outcome,
        "choices": call.choices,
        **_usage_json(call.usage),
    }


def _usage_json(usage: Usage) -> dict[str, Json]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cost_usd": round(usage.cost_usd, 8),
    }
