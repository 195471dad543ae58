"""The operator's own check of answers, over HTTP."""

from functools import partial

from litellm.llms.custom_httpx.http_handler import get_async_httpx_client, httpxSpecialProvider
from pydantic import BaseModel, ConfigDict, Field

from optillm_hooks.services import AnswerCheck, ServiceFailed
from optillm_hooks.settings import AnswerCheckSettings


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    passed: bool | None = Field(default=None, alias="pass")
    score: float | None = Field(default=None, ge=0, le=1)


def answer_check_of(settings: AnswerCheckSettings) -> AnswerCheck | None:
    """Return the operator's check, or None if there is none."""
    return None if settings.url is None else partial(_checked, settings, settings.url)


async def _checked(
    settings: AnswerCheckSettings, url: str, question: str, answer: str, /
) -> tuple[bool | None, float | None]:
    client = get_async_httpx_client(llm_provider=httpxSpecialProvider.GuardrailCallback)
    headers = {} if settings.token is None else {"Authorization": f"Bearer {settings.token}"}
    body = {"question": question, "answer": answer}
    try:
        response = await client.post(url, json=body, headers=headers, timeout=settings.timeout_s)
        reply = _Reply.model_validate_json(response.content)
    except Exception as exc:  # whatever a client of HTTP raises, or a reply that is none
        raise ServiceFailed("the operator's check of answers did not answer") from exc
    return reply.passed, reply.score
