"""On demand: an approach as a private tool, which the model calls for the questions that need it.

Good for: agents.
Worth it when: a few questions of a long task are hard, and the model knows which.

A wrapper. The model gets one tool more beside those of the client, and asks it a question that can
be understood alone. `use` is the approach that answers: any expression, such as `bon`, or in quotes
`"bon(n=5)"` and `"re2&moa"`. It runs inside the request, on the base model or on `model`, with the
system message and that question, and its answer goes back as the tool's result. The client sees
neither the tool nor its calls, streamed or not; its own tools stay its own.

Calls of one reply run concurrently. If a reply calls tools of the client too, these go to the
client, and the answer is before the model again when the client returns their results, as long as
the same worker of the proxy remembers it. A client that forbids tools gets the plain model; one
that requires a call gets a call of its own tools. The name of the tool makes way for the client's.

An approach inside has the time, calls and money of the request, except for the last call, which is
the answer's. If it fails, the model is told so and goes on; `degraded` says `tool_calls`.

Source: a tool for the hard parts is the pattern of Anthropic's advisor tool (2026,
https://platform.claude.com/docs/en/agents-and-tools/tool-use/advisor-tool) and, trained, of
Toolformer: Schick et al. 2023, "Toolformer: Language Models Can Teach Themselves to Use Tools",
arXiv:2302.04761. Deviations: any approach answers instead of one larger model, and it gets a
question instead of the whole conversation, so that a call costs little and is not led by what the
model believes already.

On reasoning models: the same; their thoughts go back with the results, as providers require.

Cost: at most one call more for each use, for each call inside that writes text, and for each use
the calls of the approach.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from pydantic import Field

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.context import Context
from optillm_hooks.errors import RequestRejected, SampleError, UnusableReply
from optillm_hooks.llm import LLM
from optillm_hooks.registry import Aside, Cost, DraftingParams, Rest, Result, wrapper
from optillm_hooks.services import Tool, ToolResult
from optillm_hooks.tools.loop import LoopLimits, ToolLoopLLM, tool_name
from optillm_hooks.tools.offer import make_offer
from optillm_hooks.tools.rounds import Rounds
from optillm_hooks.types import Chat, Fields, Json, Message

_SYSTEM: Final = ("system", "developer")

_MAX_TOOLS: Final = 128
"""Tools of one request that OpenAI's API takes."""

_SHARE: Final = 0.6
"""The share of the remaining time that a question may take."""

_GRACE_S: Final = 1.0
"""Seconds after the time of a question in which its best answer so far is returned."""

_PURPOSE: Final = """\
Gets one question answered with far more care than a single reply allows. It is slow and costly: \
use it where a mistake would decide the result (a calculation, a proof, a subtle choice), not for \
what you know or can look up. It sees nothing of this conversation."""

_QUESTION: Final = """\
The question, with everything that is needed to answer it: the facts, the figures, the code, and \
the form of the answer."""

_SCHEMA: Final[Fields] = {
    "type": "object",
    "properties": {"question": {"type": "string", "description": _QUESTION}},
    "required": ["question"],
    "additionalProperties": False,
}


class OnDemandParams(DraftingParams):
    """Parameters of on_demand."""

    model_group_fields = ("model",)
    judge_fields = ("model",)

    use: str = Field(
        default="self_consistency",
        min_length=1,
        max_length=1000,
        description="The approach that answers, as an expression without `|`; in quotes if it has "
        "parameters or several stages. `none` is a plain call.",
    )
    model: str | None = Field(
        default=None, description="Model group that it runs on; unset: the base model."
    )
    uses: int = Field(default=4, ge=1, le=32, description="Questions of one choice, at most.")
    tool: str = Field(
        default="think_harder",
        pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$",
        max_length=64,
        description="Name of the tool; changed if the client has one of this name.",
    )
    purpose: str = Field(
        default=_PURPOSE,
        min_length=1,
        max_length=1000,
        description="What the model is told that the tool is for.",
    )
    system: bool = Field(
        default=True,
        description="Whether the approach sees the system message of the conversation.",
    )
    timeout_s: float = Field(
        default=300.0,
        gt=0,
        le=3600,
        description="Seconds for a question; at most 60 % of the time that is left.",
    )
    result_characters: int = Field(
        default=20_000,
        ge=100,
        le=400_000,
        description="Characters of an answer that the model sees.",
    )

    def aside(self) -> Aside:
        return Aside(expression=self.use, parameter="use", times=self.uses, model=self.model)

    def check_model(self, model: str, supports: Callable[[str], bool]) -> None:
        if not supports("tools"):
            raise RequestRejected(
                f"on_demand needs a model that can call tools, and {model!r} is not known to. If "
                "it can, choose a provider in its `model` for which LiteLLM supports tools"
            )


@wrapper("on_demand", OnDemandParams, cost=lambda p: Cost(calls=p.uses, depth=p.uses))
async def on_demand(
    chat: Chat, rest: Rest, _llm: LLM, params: OnDemandParams, ctx: Context
) -> Result:
    """Run the stages inside on models that can ask the approach."""
    found = ctx.client.fields.get("tools")
    client = found if isinstance(found, list) else []
    if len(client) >= _MAX_TOOLS:
        ctx.trace.count("tools", lost=1, of=1)
        return await rest(chat)
    taken = {tool_name(tool) for tool in client}
    tool = Tool(name=params.tool, description=params.purpose, parameters=_SCHEMA)
    offer = await make_offer([tool], taken, at_most=1)
    limits = LoopLimits(
        rounds=params.uses,
        calls=params.uses,
        timeout_s=params.timeout_s + _GRACE_S,
        result_characters=params.result_characters,
        answer_characters=params.uses * params.result_characters,
        slots=asyncio.Semaphore(params.uses),
    )
    rounds, asked = Rounds(chat, ctx), _Asked(chat, rest, params, ctx)
    return await rest(
        rounds.restored,
        through=lambda llm: ToolLoopLLM(llm, offer, asked.answered, limits, rounds, ctx),
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """What answers the model's questions."""

    chat: Chat
    rest: Rest
    params: OnDemandParams
    ctx: Context

    async def answered(self, _: Tool, arguments: Mapping[str, Json]) -> ToolResult:
        """Return the approach's answer to the question in `arguments`.

        Raises:
            SampleError: there is none.
        """
        asked = arguments.get("question")
        if not isinstance(asked, str) or not asked.strip():
            return ToolResult(text="The argument `question` has to be a text.", is_error=True)
        ctx = self.ctx
        until = min(ctx.within(_SHARE), asyncio.get_running_loop().time() + self.params.timeout_s)
        try:
            answer = await self.rest.aside(self._alone(asked), until=until)
            text = without_reasoning(answer.text).strip()
            if not text:
                raise UnusableReply("the answer is empty")
        except SampleError as exc:
            ctx.trace.note("on_demand", outcome=exc.code)
            raise
        ctx.trace.note("on_demand", outcome="answered")
        return ToolResult(text=text)

    def _alone(self, asked: str) -> Chat:
        """Return a conversation of the question alone, with the system message if it is wanted."""
        kept = self.params.system
        system = takewhile(lambda message: kept and message.role in _SYSTEM, self.chat)
        return (*system, Message("user", asked))
