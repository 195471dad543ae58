"""Reports of how a response was made: an object in its body, headers, a line in the log."""

import re
from collections.abc import Iterable, Mapping

from optillm_hooks.errors import OptiLLMError
from optillm_hooks.gateway.estimates import estimate
from optillm_hooks.gateway.kill_switch import SWITCHED_OFF
from optillm_hooks.gateway.prepared import Prepared
from optillm_hooks.pipeline.events import Report
from optillm_hooks.pipeline.plan import PASS_THROUGH
from optillm_hooks.types import Json

_UNSAFE = re.compile(r"[^ -~]")
"""Characters not allowed in a header, such as line breaks: a name that matches a wildcard may
contain them."""

_NO_WORD = re.compile(r"[^!-~]")
"""Characters not allowed in a value of a log line: a blank could start a forged field."""

_MAX_WORD_CHARS = 128


def report_object(report: Report) -> dict[str, Json]:
    """Return the `optillm` object of a response. It holds no text of the user or of a model."""
    return {
        "approach": report.approach,
        "base_model": report.base,
        "calls": report.calls,
        "calls_saved": report.calls_saved,
        "depth": report.depth,
        "cost_usd": round(report.usage.cost_usd, 8),
        "seconds": round(report.seconds, 3),
        "stopped_by": report.stopped_by,
        "degraded": list(report.degraded),
        "choices": list(report.choices),
        "notes": notes_json(report.notes),
        **({} if report.plan is None else {"plan": dict(report.plan)}),
    }


def header_values(prepared: Prepared, *, answered: bool) -> dict[str, str]:
    """Return the `x-optillm-*` headers whose values are already known.

    If the plan failed but there is an answer (`answered`), a router's fallback gave it.
    """
    headers = {
        "x-optillm-approach": prepared.plan.label,
        "x-optillm-base-model": prepared.base,
        "x-optillm-estimated-calls": str(prepared.estimated_calls),
    }
    if (usd := estimate(prepared).cost_usd) is not None and prepared.prompt_tokens:
        headers["x-optillm-estimated-cost"] = f"{usd.low:.8f}"
    limits = prepared.limits
    if limits.deadline_s is not None:
        headers["x-optillm-deadline-s"] = f"{limits.deadline_s:g}"
    if limits.max_calls is not None:
        headers["x-optillm-max-calls"] = str(limits.max_calls)
    if prepared.outcome is not None:
        report = prepared.outcome.report
        headers |= {
            "x-optillm-calls": str(report.calls),
            "x-optillm-depth": str(report.depth),
            "x-optillm-cost-usd": f"{report.usage.cost_usd:.8f}",
            "x-optillm-seconds": f"{report.seconds:.3f}",
        }
        if report.stopped_by is not None:
            headers["x-optillm-stopped-by"] = report.stopped_by
        if report.degraded:
            headers["x-optillm-degraded"] = ",".join(report.degraded)
    if prepared.error is not None and answered:
        headers["x-optillm-degraded"] = "fallback"
    elif prepared.error is not None:
        headers |= _retry_headers(prepared, prepared.error)
    return _safe(headers)


def headers_of_plain(model: str) -> dict[str, str]:
    """Return the headers of a plain answer of `model`, for which an approach was switched off."""
    return _safe(
        {
            "x-optillm-approach": PASS_THROUGH,
            "x-optillm-base-model": model,
            "x-optillm-degraded": SWITCHED_OFF,
        }
    )


def _safe(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: _UNSAFE.sub("?", value) for name, value in headers.items()}


def _retry_headers(prepared: Prepared, error: OptiLLMError) -> dict[str, str]:
    """Return the headers that control the automatic retries of client libraries.

    After a paid call they are switched off: paying again is the user's decision.
    """
    paid = any(call.outcome == "ok" for call in prepared.trace.calls)
    headers = {"x-should-retry": "false"} if paid else {}
    if error.retry_after is not None:
        headers["retry-after"] = error.retry_after
    return headers


def log_fields(prepared: Prepared, *, seconds: float, error: str) -> dict[str, Json]:
    """Return what the log says of a plan that has ended.

    It holds no text of the user or of a model; the approach is given without its parameters.
    """
    usage = prepared.trace.usage
    report = None if prepared.outcome is None else prepared.outcome.report
    return {
        "call_id": prepared.trace.call_id,
        "approach": prepared.plan.label,
        "base": prepared.base,
        "calls": usage.calls,
        "depth": prepared.trace.depth,
        "seconds": round(seconds, 3),
        "cost_usd": round(usage.cost_usd, 8),
        "stopped_by": prepared.trace.stopped_by,
        "degraded": list(report.degraded if report else ()),
        "error": error or None,
    }


def log_line(fields: Mapping[str, Json]) -> str:
    """Return the fields as one line of `name=value` pairs."""
    return " ".join(f"{name}={word(_in_line(name, value))}" for name, value in fields.items())


def _in_line(name: str, value: Json) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.8f}" if name == "cost_usd" else f"{value:.3f}"
    return "" if value is None else str(value)


def word(value: str) -> str:
    """Return `value` as a single word for a log line, with unsafe characters replaced."""
    return _NO_WORD.sub("?", value)[:_MAX_WORD_CHARS] or "-"


def notes_json(notes: Iterable[tuple[str, Mapping[str, object]]]) -> list[Json]:
    """Return the notes of a trace as objects, each with its name."""
    return [{"name": name, **_plain(facts)} for name, facts in notes]


def _plain(facts: object) -> dict[str, Json]:
    plain = _json(facts)
    return plain if isinstance(plain, dict) else {}


def _json(value: object) -> Json:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_json(item) for item in value]
    return str(value)
