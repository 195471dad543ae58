"""MCP tools: the model calls tools of the operator's MCP servers before it answers.

Good for: pages and tools.
Worth it when: the answer needs the tools of the operator's MCP servers.
Source: the Model Context Protocol (https://modelcontextprotocol.io). The servers are those of
LiteLLM's MCP gateway, which decides what a key may use, holds the credentials, limits, logs and
bills each call. Here is only the loop: the calls of one reply run concurrently, their results go
back to the model, and so on until it answers.

Against OptiLLM's plugin of this name: many rounds instead of one; names that every provider takes;
failures are told to the model and reported instead of an answer without tools; the client's own
tools stay the client's; servers get no variables of the proxy's environment; a key has only the
servers that LiteLLM grants it.

Around other approaches, each of their calls that writes text can call tools, and judges cannot.
A call of a tool that the client has defined ends the loop and goes to the client. When the client
returns its result, the model finds its own rounds before it again, as long as the same worker of
the proxy remembers them.

A short remark before a tool call is not part of the answer; a text of 400 characters or more is.
Whatever a server says, in results and errors, is shown as data. Descriptions of tools cannot be:
connect only servers whose operator you trust.

On reasoning models: their thoughts go back with the results, as their providers require.

Cost: at most one call more per round, for each call inside that writes text.
"""

import asyncio
from collections.abc import Callable

from pydantic import Field

from optillm_hooks.context import Context
from optillm_hooks.errors import RequestRejected
from optillm_hooks.llm import LLM
from optillm_hooks.registry import Cost, Params, Rest, Result, wrapper
from optillm_hooks.services import Services, ToolWish
from optillm_hooks.tools.loop import LoopLimits, ToolLoopLLM, tool_name
from optillm_hooks.tools.offer import make_offer
from optillm_hooks.tools.rounds import Rounds
from optillm_hooks.types import Chat


class McpParams(Params):
    """Parameters of mcp."""

    servers: tuple[str, ...] | None = Field(
        default=None,
        max_length=64,
        description="Names of MCP servers, or of access groups of them; unset, all that the key "
        "may use.",
    )
    tools: tuple[str, ...] | None = Field(
        default=None,
        max_length=256,
        description="Names of tools, with or without their server's name before them; unset, all.",
    )
    rounds: int = Field(
        default=8, ge=1, le=32, description="Rounds of tool calls before the model must answer."
    )
    calls: int = Field(
        default=64, ge=1, le=512, description="Tool calls of one choice, in all its rounds."
    )
    parallel: int = Field(default=8, ge=1, le=32, description="Tool calls that run at once.")
    timeout_s: float = Field(default=60.0, gt=0, le=600, description="Seconds for a tool call.")
    result_characters: int = Field(
        default=20_000,
        ge=100,
        le=400_000,
        description="Characters of a tool's result that the model sees.",
    )
    answer_characters: int = Field(
        default=160_000,
        ge=100,
        le=4_000_000,
        description="Characters of all results that the model sees before one answer, besides at "
        "most 16 images.",
    )
    offered: int = Field(
        default=64, ge=1, le=128, description="Tools that the model is offered, at most."
    )
    resources: bool = Field(
        default=False, description="Offer tools that list and read the servers' resources."
    )
    prompts: bool = Field(
        default=False, description="Offer tools that list and get the servers' prompts."
    )

    def check_services(self, services: Services) -> None:
        if services.toolbox is None:
            raise RequestRejected("mcp needs LiteLLM's proxy, which has the MCP servers")
        services.toolbox.check()

    def check_model(self, model: str, supports: Callable[[str], bool]) -> None:
        if not supports("tools"):
            raise RequestRejected(
                f"mcp needs a model that can call tools, and {model!r} is not known to. If it can, "
                "choose a provider in its `model` for which LiteLLM supports tools"
            )


@wrapper("mcp", McpParams, cost=lambda p: Cost(calls=p.rounds, depth=p.rounds), needs=("tools",))
async def mcp(chat: Chat, rest: Rest, _llm: LLM, params: McpParams, ctx: Context) -> Result:
    """Run the stages inside on models that can call the tools."""
    box = ctx.services.toolbox
    if box is None:
        raise RequestRejected("mcp has no MCP servers here")
    wish = ToolWish(
        servers=params.servers,
        tools=params.tools,
        resources=params.resources,
        prompts=params.prompts,
    )
    found = await box.offer(wish)
    ctx.trace.count("mcp_servers", lost=found.unreachable, of=found.servers)
    client = ctx.client.fields.get("tools")
    taken = {tool_name(tool) for tool in client} if isinstance(client, list) else set[str]()
    offer = await make_offer(found.tools, taken, at_most=params.offered)
    ctx.trace.count(
        "tools", lost=offer.left_out + found.missing, of=len(found.tools) + found.missing
    )
    ctx.trace.note("mcp", servers=found.servers, tools=len(offer.tools))
    limits = LoopLimits(
        rounds=params.rounds,
        calls=params.calls,
        timeout_s=params.timeout_s,
        result_characters=params.result_characters,
        answer_characters=params.answer_characters,
        slots=asyncio.Semaphore(params.parallel),
    )
    rounds = Rounds(chat, ctx)
    return await rest(
        rounds.restored,
        through=lambda llm: ToolLoopLLM(llm, offer, box.call, limits, rounds, ctx),
    )
