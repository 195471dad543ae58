"""Runs a plugin in a thread: what it gets, and what becomes of what it returns."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar, Final, cast, get_args

from pydantic import ConfigDict, Field

from optillm_hooks.context import Context
from optillm_hooks.errors import EmptyCompletion, SampleError, UnusableReply
from optillm_hooks.fanout import LoopOfThread, in_thread
from optillm_hooks.llm import LLM
from optillm_hooks.messages import write_chat
from optillm_hooks.plugin_files.client import Client, Models
from optillm_hooks.registry import AnswererFn, Params
from optillm_hooks.types import Answer, Chat, FinishReason, ToolCall

_TAGS: Final = {"user": "User", "assistant": "Assistant"}
_FINISH_REASONS: Final = frozenset(get_args(FinishReason))


class PluginParams(Params):
    """Any parameter is accepted: the plugin finds it in `request_config`."""

    model_config = ConfigDict(extra="allow")
    reads_any_field: ClassVar[bool] = True
    model_group_fields: ClassVar[tuple[str, ...]] = ("models",)

    models: tuple[str, ...] = Field(
        default=(),
        max_length=16,
        description="Model groups that the plugin may call besides the base model.",
    )


def runner(run: Callable[..., Any]) -> AnswererFn[PluginParams]:
    """Return the answerer that calls a plugin's function `run`."""
    accepted = inspect.signature(run).parameters

    async def answer(chat: Chat, llm: LLM, params: PluginParams, ctx: Context) -> Answer:
        """Return the plugin's answer.

        Of several answers, the first is returned and the others are reported as lost. If every
        call of the plugin fails, so does the plugin, whatever it returns.

        Raises:
            SampleError: the plugin raised it, or every call failed.
            UnusableReply: the plugin returned something else than an answer.
            EmptyCompletion: it returned an empty text.
        """
        query = flattened(chat)
        models = Models(llm, {name: ctx.llm(name) for name in params.models}, query, ctx)
        given: dict[str, Any] = {}
        if "request_config" in accepted:
            given["request_config"] = request_config(params, ctx)
        if "messages" in accepted:
            given["messages"] = write_chat(chat)

        def work(loop: LoopOfThread) -> Any:
            client = Client(models, loop)
            result = run(system_prompt(chat), query, client, llm.model, **given)
            return loop.run_coroutine(result) if inspect.iscoroutine(result) else result

        try:
            result = await in_thread(work)
        except Exception as exc:
            error = _cause(exc)
            if error is None or error is exc:
                raise
            raise error from None
        if models.failure is not None:
            raise models.failure
        return ctx.bounded(_one(read_result(result), ctx), llm.facts)

    return answer


def _cause(error: BaseException | None) -> SampleError | None:
    """Return the error of a call that has led to `error`, if any."""
    while error is not None and not isinstance(error, SampleError):
        error = error.__cause__ or error.__context__
    return error


def _one(answers: Sequence[Answer], ctx: Context) -> Answer:
    ctx.trace.count("choices", lost=len(answers) - 1, of=len(answers))
    if answers[0].empty:
        raise EmptyCompletion(answers[0])
    return answers[0]


def system_prompt(chat: Chat) -> str:
    """Return the texts of the system messages."""
    return "\n\n".join(m.text for m in chat if m.role in ("system", "developer"))


def flattened(chat: Chat) -> str:
    """Return the conversation as one text: a line per turn, with its role, as OptiLLM writes it.

    A conversation of a single user turn is its text alone.
    """
    turns = [m for m in chat if m.role in _TAGS and m.text]
    if len(turns) == 1 and turns[0].role == "user":
        return turns[0].text
    return "\n".join(f"{_TAGS[turn.role]}: {turn.text}" for turn in turns)


def request_config(params: PluginParams, ctx: Context) -> dict[str, Any]:
    """Return the fields of the request as OptiLLM's plugins read them, with the parameters.

    `n` is 1 and `stream` is false: the plugin is run for each choice, and its answer is streamed
    for it.
    """
    client = ctx.client
    named = {
        "temperature": client.temperature,
        "top_p": client.top_p,
        "seed": client.seed,
        "stop": None if client.stop is None else list(client.stop),
        "max_tokens": client.max_tokens,
        "max_completion_tokens": client.max_tokens,
    }
    fields = dict(client.fields)
    nested = fields.pop("extra_body", None)
    return deepcopy(
        {
            **(nested if isinstance(nested, dict) else {}),
            **fields,
            **{name: value for name, value in named.items() if value is not None},
            **(params.model_extra or {}),
            "stream": False,
            "n": 1,
        }
    )


def read_result(result: Any) -> list[Answer]:
    """Return the answers in what a plugin returned: one or more.

    That is a text, a list of texts, or a whole completion (a dict, or OpenAI's object), alone or
    in a pair with a number of tokens.

    Raises:
        UnusableReply: it is something else.
    """
    if isinstance(result, tuple) and len(result) == 2:
        result = result[0]
    parts = result if isinstance(result, list) else [result]
    answers = [answer for part in parts for answer in _answers(part)]
    if not answers:
        raise UnusableReply("the plugin returned no answer")
    return answers


def _answers(part: Any) -> list[Answer]:
    if isinstance(part, str):
        return [Answer(part)]
    if hasattr(part, "model_dump"):
        part = part.model_dump()
    if isinstance(part, Mapping) and isinstance(part.get("choices"), list):
        return [_answer(choice) for choice in part["choices"]]
    raise UnusableReply(f"the plugin returned a {type(part).__name__}, which is not an answer")


def _answer(choice: Any) -> Answer:
    try:
        message = choice["message"]
        calls = tuple(
            ToolCall(str(c["id"]), str(c["function"]["name"]), str(c["function"]["arguments"]))
            for c in message.get("tool_calls") or ()
        )
        text, reason = message.get("content") or "", choice.get("finish_reason")
        reasoning = message.get("reasoning_content") or ""
    except (TypeError, KeyError, AttributeError):
        raise UnusableReply("the plugin returned a completion that cannot be read") from None
    if not isinstance(text, str) or not isinstance(reasoning, str):
        raise UnusableReply("the plugin returned a completion whose content is not text")
    finish = reason if reason in _FINISH_REASONS else "tool_calls" if calls else "stop"
    return Answer(text, cast(FinishReason, finish), reasoning, calls)
