"""The spend log of a LiteLLM proxy: what it has booked for the requests of an evaluation."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final
from uuid import uuid4

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

_PAGE: Final = 1000
"""Entries of a page, at most as many as LiteLLM gives."""

_MOST_PAGES: Final = 1000
"""Pages that are read, whatever a host says."""


class Run(BaseModel):
    """An evaluation, as the spend log knows it."""

    model_config = ConfigDict(frozen=True)

    id: str
    begun: date
    """In UTC."""

    def headers(self) -> dict[str, str]:
        """Return headers for one request: with them, all entries of its calls name this run.

        Requests do not share a trace, which LiteLLM would take for a conversation.
        """
        return {"x-litellm-trace-id": f"{self.id}-{uuid4().hex}"}


def new_run() -> Run:
    return Run(id=f"optillm-eval-{uuid4().hex}", begun=datetime.now(UTC).date())


@dataclass(frozen=True, slots=True)
class Booked:
    """What a spend log has of a run."""

    usd: float
    entries: int


class _Entry(BaseModel):
    spend: float


class _Page(BaseModel):
    data: tuple[_Entry, ...]
    total_pages: int


def booked(url: str, key: str, run: Run, timeout_s: float) -> Booked | None:
    """Return what the proxy at `url` has booked for a run; None if it shows no spend log.

    LiteLLM has one if it has a database, and shows it to administrators and to a key's own user.
    """
    log = f"{url.rstrip('/').removesuffix('/v1')}/spend/logs/v2"
    query = {
        "session_id": run.id,  # which is a part of the traces
        "start_date": run.begun.isoformat(),
        "end_date": (datetime.now(UTC).date() + timedelta(days=1)).isoformat(),
        "page_size": str(_PAGE),
    }
    spent, number = list[float](), 1
    try:
        with httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=timeout_s) as client:
            while True:
                response = client.get(log, params={**query, "page": str(number)})
                page = _Page.model_validate_json(response.raise_for_status().content)
                spent += [entry.spend for entry in page.data]
                if number >= min(page.total_pages, _MOST_PAGES):
                    return Booked(sum(spent), len(spent))
                number += 1
    except (httpx.HTTPError, ValidationError):
        return None
