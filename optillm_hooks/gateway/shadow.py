"""Shadows: another approach answers some requests again, once their own answers have been sent.

Nobody waits for a shadow, and nobody sees its answer. LiteLLM books its calls on its account for
internal jobs, never on the client's key. Only its verdict, cost and time are kept.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from random import Random, SystemRandom
from typing import Any, Final

import litellm
from litellm.litellm_core_utils.redact_messages import should_redact_message_logging
from litellm.proxy._types import UserAPIKeyAuth
from litellm.types.utils import CallTypes
from pydantic import ValidationError

from optillm_hooks.errors import OptiLLMError
from optillm_hooks.fanout import Background, in_thread
from optillm_hooks.gateway.brownout import BROWNOUT
from optillm_hooks.gateway.deployments import proxy_router
from optillm_hooks.gateway.kill_switch import is_off
from optillm_hooks.gateway.metrics import count_shadow
from optillm_hooks.gateway.model_names import PROVIDER
from optillm_hooks.gateway.operator_settings import read_settings
from optillm_hooks.gateway.prepared import METADATA_KEY, ClientRequest
from optillm_hooks.gateway.shadow_log import CHECK, Record, ShadowLog, Side, Verdict, log_of
from optillm_hooks.gateway.shadow_verdict import checked, judging, read_verdict, shuffled
from optillm_hooks.gateway.shadowed import Copied, copy_of
from optillm_hooks.pipeline.logs import format_traceback
from optillm_hooks.settings import ShadowSettings
from optillm_hooks.types import Usage

_log = logging.getLogger(__name__)

_UNCACHED: Final = {"no-cache": True, "no-store": True}
_SECONDS: Final = 600.0
"""After which a shadow is ended."""


@dataclass(frozen=True, slots=True)
class _Reply:
    text: str
    side: Side


@dataclass(frozen=True, slots=True)
class _Job:
    """A shadow that waits until the answer of its request has been sent."""

    route: str
    settings: ShadowSettings
    copied: Copied
    base: str
    info: Mapping[str, Any]
    """The settings of the alias, which hold for its shadow too."""

    served: _Reply
    log: ShadowLog


class Shadows:
    """Draws requests, and runs their shadows. `rng` decides which, and the order for the judge."""

    def __init__(self, rng: Random | None = None) -> None:
        self._rng = rng or SystemRandom()  # workers that are forks of one process differ too
        self._is_stopped = False

    def draw(
        self,
        client: ClientRequest,
        metadata: Mapping[str, Any],
        call: Mapping[str, Any],
        call_type: CallTypes | None,
    ) -> None:
        """Choose by chance whether a client's request has a shadow; copy it if so.

        It is asked for each call of the request, as LiteLLM sends it on; the last copy counts.
        """
        shadowed = client.shadowed
        if not shadowed.is_drawn:
            shadowed.is_drawn = True
            settings = _settings_for(client, metadata)
            if settings is not None and self._rng.random() < settings.share:
                shadowed.settings = settings
        if shadowed.settings is not None:
            shadowed.copied = copy_of(call_type, call)

    def answered(
        self,
        client: ClientRequest,
        metadata: Mapping[str, Any],
        call: Mapping[str, Any],
        response: object,
        seconds: float,
    ) -> None:
        """Start the shadow of a request that has been answered, if it has one."""
        shadowed, log = client.shadowed, log_of(read_settings().shadow)
        settings, copied = shadowed.settings, shadowed.copied
        shadowed.settings = shadowed.copied = None  # LiteLLM may log a request twice
        text = _text_of(response)
        if settings is None or copied is None or log is None or not text:
            return
        if metadata.get("model_group") != client.model:  # a fallback has answered
            return
        if should_redact_message_logging(dict(call)):
            return
        served = _Reply(text, _served(client, metadata, call, response, seconds))
        prepared = client.answering
        base = served.side.model if prepared is None else prepared.base
        info = (metadata.get("model_info") or {}).get("optillm") or {}
        own = {} if prepared is None else {k: v for k, v in info.items() if k != "shadow"}
        job = _Job(client.route, settings, copied, base, own, served, log)
        background = background_of(read_settings().shadow.at_once)
        if self._is_stopped or not background.accept("", lambda: self._run(job, shadowed.task)):
            count_shadow(served.side.model, "busy")

    def stop(self) -> None:
        """Cut off what is under way, which is recorded with its cost, and begin no more."""
        self._is_stopped = True
        background_of(read_settings().shadow.at_once).cancel()

    async def _run(self, job: _Job, answering: asyncio.Task[Any] | None) -> None:
        if answering is not None:
            await asyncio.wait([answering])
        model = job.served.side.model
        if BROWNOUT.width(read_settings().brownout) is not None or is_off(None):
            count_shadow(model, "busy")
        elif not await in_thread(lambda _: job.log.may_spend()):
            count_shadow(model, "over_budget")
        else:
            record = await self._record(job)
            job.log.add(record)
            count_shadow(model, record.error or "judged")

    async def _record(self, job: _Job) -> Record:
        name = f"{job.settings.approach} on {job.base}"
        request, begun = ClientRequest("chat", name), time.monotonic()
        try:
            return await self._compared(job, request)
        except Exception as exc:
            _log.info("optillm: a shadow failed: %s", type(exc).__name__)
            return self._unanswered(job, request, begun, "failed")
        except asyncio.CancelledError:
            job.log.add(self._unanswered(job, request, begun, "cut_off"))
            count_shadow(job.served.side.model, "cut_off")
            raise

    async def _compared(self, job: _Job, request: ClientRequest) -> Record:
        """Return what came of a shadow, once it has answered."""
        asked = job.copied.as_chat()
        shadow = await _answer(job, asked, request)
        spent = shadow.side.cost_usd or 0.0
        if not shadow.text:
            return self._made(job, shadow.side, None, spent, error="no_text")
        try:
            verdict, cost = await self._verdict(job, asked["messages"], shadow.text)
        except Exception as exc:
            _log.info("optillm: the judge of a shadow failed: %s", type(exc).__name__)
            return self._made(job, shadow.side, None, spent, error="judge_failed")
        error = "unread" if verdict is None else None
        return self._made(job, shadow.side, verdict, spent + cost, error=error)

    def _unanswered(self, job: _Job, request: ClientRequest, begun: float, error: str) -> Record:
        """Return the record of a shadow without an answer, with what its calls have cost."""
        calls = [call for trace in request.runs for call in trace.calls]
        used = sum((call.usage for call in calls), Usage())
        side = Side(
            model=request.model,
            call_id=None,
            seconds=time.monotonic() - begun,
            cost_usd=used.cost_usd,
            prompt_tokens=used.prompt_tokens,
            completion_tokens=used.completion_tokens,
            calls=len(calls),
            depth=max((trace.depth for trace in request.runs), default=0),
        )
        return self._made(job, side, None, used.cost_usd or 0.0, error=error)

    def _made(
        self, job: _Job, shadow: Side, verdict: Verdict | None, cost: float, *, error: str | None
    ) -> Record:
        by = job.settings.judge or f"{CHECK}{job.settings.check}"
        return Record(
            route=job.route, served=job.served.side, shadow=shadow, by=by, verdict=verdict,
            error=error, cost_usd=cost,
        )  # fmt: skip

    async def _verdict(
        self, job: _Job, messages: Sequence[Mapping[str, Any]], shadow: str
    ) -> tuple[Verdict | None, float]:
        """Return the verdict, None if it cannot be read, and what it cost."""
        served, judge, kind = job.served.text, job.settings.judge, job.settings.check
        if kind is not None:
            return await in_thread(lambda _: checked(kind, messages, served, shadow)), 0.0
        answers, shadow_first = shuffled(served, shadow, self._rng)
        router = proxy_router()
        if router is None or judge is None:
            raise OptiLLMError("there is no judge outside a proxy")
        said = await router.acompletion(
            model=judge, messages=judging(messages, answers), metadata=_identity()
        )
        reply = _reply_of(said, judge, 0.0)
        verdict = read_verdict(reply.text, shadow_first=shadow_first)
        return verdict, reply.side.cost_usd or 0.0


@cache
def background_of(at_once: int) -> Background:
    """Return what runs the shadows of this process; more than `at_once` are refused."""
    return Background(running=at_once, waiting=at_once, seconds=_SECONDS, describe=format_traceback)


def _settings_for(client: ClientRequest, metadata: Mapping[str, Any]) -> ShadowSettings | None:
    """Return the settings of the shadow that a request may have.

    It has none if it is a dry run, if its answer is not that of the alias alone, if its plan keeps
    texts from models, or while approaches are switched off.
    """
    if read_settings().shadow.directory is None or client.instead is not None:
        return None
    key = metadata.get("user_api_key_auth")
    if is_off(key if isinstance(key, UserAPIKeyAuth) else None):
        return None
    prepared = client.answering
    if prepared is not None:
        selection = prepared.selection
        if selection.source != "alias" or selection.dry_run or prepared.plan.is_confidential:
            return None
    given = ((metadata.get("model_info") or {}).get("optillm") or {}).get("shadow")
    with suppress(ValidationError):  # the proxy has told at its start
        return None if given is None else ShadowSettings.model_validate(given)
    return None


def _identity() -> dict[str, Any]:
    """Return the metadata that books a call on LiteLLM's own account for internal jobs."""
    account = UserAPIKeyAuth.get_litellm_internal_jobs_user_api_key_auth()
    return {
        "user_api_key": account.api_key,
        "user_api_key_hash": account.api_key,
        "user_api_key_alias": account.key_alias,
        "user_api_key_team_id": account.team_id,
        "user_api_key_team_alias": account.team_alias,
        "user_api_key_user_id": account.user_id,
    }


async def _answer(job: _Job, asked: Mapping[str, Any], request: ClientRequest) -> _Reply:
    """Return the shadow's answer; what its calls cost is in `request`, also if there is none."""
    begun = time.monotonic()
    response = await litellm.acompletion(
        model=f"{PROVIDER}/{job.settings.approach}/{job.base}",
        metadata={**_identity(), METADATA_KEY: request},
        model_info={"optillm": job.info},
        num_retries=0,
        cache=_UNCACHED,
        **asked,
    )
    return _reply_of(response, request.model, time.monotonic() - begun)


def _reply_of(response: Any, model: str, seconds: float) -> _Reply:
    """Return a response of chat completions, with our report's figures if it has one."""
    report = getattr(response, "optillm", None) or {}
    cost = report.get("cost_usd", (response._hidden_params or {}).get("response_cost"))
    prompt, completion = _tokens(response)
    side = Side(
        model=model,
        call_id=getattr(response, "id", None),
        seconds=seconds,
        cost_usd=cost,
        prompt_tokens=prompt,
        completion_tokens=completion,
        calls=report.get("calls", 1),
        depth=report.get("depth", 1),
        degraded=tuple(report.get("degraded", ())),
    )
    return _Reply(_text_of(response), side)


def _served(
    client: ClientRequest,
    metadata: Mapping[str, Any],
    call: Mapping[str, Any],
    response: object,
    seconds: float,
) -> Side:
    prompt, completion = _tokens(response)
    side = Side(
        model=str(metadata.get("model_group")),
        call_id=str(call.get("litellm_call_id")),
        seconds=seconds,
        cost_usd=call.get("response_cost"),
        prompt_tokens=prompt,
        completion_tokens=completion,
    )
    if client.outcome is None:
        return side
    report = client.outcome.report
    return replace(
        side, cost_usd=report.usage.cost_usd, calls=report.calls, depth=report.depth,
        degraded=report.degraded,
    )  # fmt: skip


def _as_object(response: object) -> Mapping[str, Any]:
    """Return a response of any route as the JSON that it is."""
    dump = getattr(response, "model_dump", None)
    made = dump() if callable(dump) else response
    found = made if isinstance(made, Mapping) else {}
    inner = found.get("response")  # the last event of a stream of the responses route
    return inner if isinstance(inner, Mapping) else found


def _tokens(response: object) -> tuple[int, int]:
    """Return the prompt's tokens and the answer's."""
    usage = _as_object(response).get("usage") or {}
    prompt = usage.get("prompt_tokens") or usage.get("input_tokens") or 0
    return prompt, usage.get("completion_tokens") or usage.get("output_tokens") or 0


def _text_of(response: object) -> str:
    """Return the text of a response's answer; "" if it calls tools, or has none."""
    found = _as_object(response)
    if choices := found.get("choices"):
        message = choices[0].get("message") or {}
        return "" if message.get("tool_calls") else message.get("content") or ""
    outputs = found.get("output") or ()
    if any(str(item.get("type", "")).endswith("_call") for item in outputs):
        return ""
    parts = [*(found.get("content") or ()), *(p for o in outputs for p in o.get("content") or ())]
    if any(part.get("type") == "tool_use" for part in parts):
        return ""
    return "".join(p.get("text") or "" for p in parts if p.get("type") in ("text", "output_text"))


def seconds_between(start: object, end: object) -> float:
    """Return the seconds between two times of LiteLLM's log."""
    if isinstance(start, datetime) and isinstance(end, datetime):
        return (end - start).total_seconds()
    return 0.0


SHADOWS: Final = Shadows()
"""Those of this process."""
