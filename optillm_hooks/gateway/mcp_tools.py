"""The tools of LiteLLM's MCP gateway, for the key of a request.

LiteLLM decides which servers and tools a key may use, holds their credentials, connects, limits,
logs and bills. Of its internals, only those in `_Gateway` are used here.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple, Self

from litellm.proxy._types import UserAPIKeyAuth

from optillm_hooks.errors import Refused, RequestRejected, SampleError
from optillm_hooks.fanout import outcomes
from optillm_hooks.gateway.caller import Caller
from optillm_hooks.gateway.masking import mask_credentials
from optillm_hooks.services import ServiceFailed, Tool, ToolOffer, ToolResult, ToolWish
from optillm_hooks.types import Fields, Json

_LISTING_S: Final = 15.0
"""Seconds in which a server has to tell what it offers."""

_MAX_PAGES: Final = 20
_MAX_BLOCKS: Final = 100
_MAX_TEXT: Final = 1_000_000
"""Characters of a block of a result that are passed on. LiteLLM has read all of it by then."""

_MAX_ERROR: Final = 2000
_OUTCOMES: Final = "litellm.ai/server_outcomes"
_IMAGES: Final = ("image/png", "image/jpeg", "image/gif", "image/webp")


class _Gateway(NamedTuple):
    """What is used of LiteLLM."""

    manager: Any
    allowed_servers: Callable[..., Awaitable[Sequence[Any]]]
    """Returns the servers that a key may use from an address, of certain names."""

    execute: Callable[[Any, Any], Awaitable[Any]]
    """Carries out a request of the protocol in a context."""

    context: Callable[..., Any]
    bare_name: Callable[[str, Any], str]
    """Returns a tool's name without that of its server."""

    @classmethod
    def load(cls) -> Self:
        """Return LiteLLM's gateway.

        Raises:
            RequestRejected: this version of LiteLLM does not have it in the known form.
        """
        try:
            from litellm.proxy._experimental.mcp_server import (
                mcp_server_manager,
                operations,
                utils,
            )

            return cls(
                mcp_server_manager.global_mcp_server_manager,
                operations._get_allowed_mcp_servers,
                operations.GatewayOperations().execute,
                operations.prepare_context,
                utils.strip_known_server_prefix,
            )
        except (ImportError, AttributeError) as exc:
            raise RequestRejected(
                f"mcp does not know the MCP gateway of this version of LiteLLM: {exc}"
            ) from exc


class GatewayTools:
    """The tools that a caller may use, as a `ToolBox`."""

    def __init__(self, caller: Caller) -> None:
        self._key: UserAPIKeyAuth | None = caller.key
        self._address = str(caller.metadata.get("requester_ip_address") or "") or None
        trace = caller.extra.get("litellm_trace_id") or caller.extra.get("litellm_session_id")
        self._headers = {"x-litellm-trace-id": str(trace)} if trace else {}
        self._readers: dict[str, _Read] = {}
        self._names = set[str]()

    def check(self) -> None:
        if not _Gateway.load().manager.get_registry():
            raise RequestRejected(
                "mcp needs MCP servers, and none is configured: set mcp_servers in LiteLLM's "
                "configuration"
            )

    async def offer(self, wish: ToolWish, /) -> ToolOffer:
        gateway = _Gateway.load()
        servers = await self._servers(gateway, wish.servers)
        found = await outcomes([partial(self._of, gateway, each, wish) for each in servers])
        tools: dict[str, Tool] = {}
        for of_server in found:
            for tool in () if isinstance(of_server, SampleError) else of_server:
                tools.setdefault(tool.name, tool)
        lost = sum(isinstance(of_server, SampleError) for of_server in found)
        missing = [name for name in wish.tools or () if name not in self._names]
        if missing and not lost and len(missing) == len(wish.tools or ()):
            raise Refused(f"no MCP server that this key may use has a tool {missing[0][:100]!r}")
        return ToolOffer(
            tools=tuple(tools.values()),
            missing=len(missing),
            servers=len(servers),
            unreachable=lost,
        )

    async def call(self, tool: Tool, arguments: dict[str, Json], /) -> ToolResult:
        read = self._readers.get(tool.name, _call)
        with _as_service_failure(f"tool {tool.name}"):
            request = read(tool.name, arguments)
            gateway = _Gateway.load()
            return _result(await gateway.execute(request, self._context(gateway, tool.server)))

    async def _servers(self, gateway: _Gateway, names: Sequence[str] | None) -> list[Any]:
        """Return the servers that the caller may use, each once.

        Raises:
            Refused: there is none, or none of one of the names.
        """
        found: dict[str, Any] = {}
        for name in (None,) if names is None else names:
            of_name = await gateway.allowed_servers(
                user_api_key_auth=self._key,
                mcp_servers=None if name is None else [name],
                client_ip=self._address,
            )
            if not of_name:
                which = "any MCP server" if name is None else f"an MCP server {name[:100]!r}"
                raise Refused(f"this key may not use {which}")
            found.update({server.server_id: server for server in of_name})
        return list(found.values())

    async def _of(self, gateway: _Gateway, server: Any, wish: ToolWish) -> list[Tool]:
        """Return the tools of a server.

        Raises:
            ServiceFailed: it cannot be reached in time.
        """
        with _as_service_failure("MCP server"):
            async with asyncio.timeout(_LISTING_S):
                listed = await self._listed(gateway, server)
        costs = (server.mcp_info or {}).get("mcp_server_cost_info") or {}
        tools = list[Tool]()
        for each in listed:
            bare = gateway.bare_name(each.name, server)
            if wish.tools is None or not {each.name, bare}.isdisjoint(wish.tools):
                self._names.update((each.name, bare))
                tools.append(_tool(each, bare, server, costs))
        return tools + self._of_readers(server, wish)

    async def _listed(self, gateway: _Gateway, server: Any) -> list[Any]:
        from mcp.types import ListToolsRequest, PaginatedRequestParams

        listed, cursor = list[Any](), None
        for _ in range(_MAX_PAGES):
            request = ListToolsRequest(params=PaginatedRequestParams(cursor=cursor))
            page = await gateway.execute(request, self._context(gateway, server.server_id))
            listed += page.tools
            _check_outcomes(page)
            if (cursor := page.next_cursor) is None:
                break
        return listed

    def _of_readers(self, server: Any, wish: ToolWish) -> list[Tool]:
        """Return tools of ours that read what a server has besides tools."""
        title = str(server.alias or server.server_name or server.name)
        wanted = [
            *(_OF_RESOURCES if wish.resources else ()),
            *(_OF_PROMPTS if wish.prompts else ()),
        ]
        tools = list[Tool]()
        for reader in wanted:
            name = f"{title}-{reader.name}"
            self._readers[name] = reader.read
            tools.append(
                Tool(
                    name=name,
                    description=f"{reader.description} of the server {title}.",
                    parameters=reader.parameters,
                    server=server.server_id,
                )
            )
        return tools

    def _context(self, gateway: _Gateway, server: str) -> Any:
        return gateway.context(
            user_api_key_auth=self._key,
            mcp_servers=[server],
            raw_headers=self._headers,
            client_ip=self._address,
        )


_Read = Callable[[str, dict[str, Json]], Any]
"""Returns the protocol's request for a tool's name and arguments."""


class _Reader(NamedTuple):
    name: str
    description: str
    parameters: Fields
    read: _Read


def _call(name: str, arguments: dict[str, Json]) -> Any:
    from mcp.types import CallToolRequest, CallToolRequestParams

    return CallToolRequest(params=CallToolRequestParams(name=name, arguments=arguments))


def _list_resources(_name: str, _arguments: dict[str, Json]) -> Any:
    from mcp.types import ListResourcesRequest, PaginatedRequestParams

    return ListResourcesRequest(params=PaginatedRequestParams())


def _read_resource(_name: str, arguments: dict[str, Json]) -> Any:
    from mcp.types import ReadResourceRequest, ReadResourceRequestParams

    uri = str(arguments.get("uri") or "")
    return ReadResourceRequest(params=ReadResourceRequestParams(uri=uri))


def _list_prompts(_name: str, _arguments: dict[str, Json]) -> Any:
    from mcp.types import ListPromptsRequest, PaginatedRequestParams

    return ListPromptsRequest(params=PaginatedRequestParams())


def _get_prompt(_name: str, arguments: dict[str, Json]) -> Any:
    from mcp.types import GetPromptRequest, GetPromptRequestParams

    given = arguments.get("arguments")
    texts = {k: str(v) for k, v in given.items()} if isinstance(given, dict) else {}
    params = GetPromptRequestParams(name=str(arguments.get("name") or ""), arguments=texts)
    return GetPromptRequest(params=params)


_NOTHING: Final[Fields] = {"type": "object", "properties": {}}
_URI: Final[Fields] = {
    "type": "object",
    "properties": {"uri": {"type": "string"}},
    "required": ["uri"],
}
_PROMPT: Final[Fields] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "arguments": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["name"],
}
_OF_RESOURCES: Final = (
    _Reader("list_resources", "List the resources", _NOTHING, _list_resources),
    _Reader("read_resource", "Read a resource", _URI, _read_resource),
)
_OF_PROMPTS: Final = (
    _Reader("list_prompts", "List the prompts", _NOTHING, _list_prompts),
    _Reader("get_prompt", "Get a prompt", _PROMPT, _get_prompt),
)


def _tool(listed: Any, bare: str, server: Any, costs: Any) -> Tool:
    of_tools = costs.get("tool_name_to_cost_per_query") or {}
    schema = listed.input_schema
    return Tool(
        name=listed.name,
        description=str(listed.description or listed.title or ""),
        parameters=schema if isinstance(schema, dict) else {},
        server=server.server_id,
        price_usd=float(of_tools.get(bare, costs.get("default_cost_per_query")) or 0.0),
    )


def _check_outcomes(page: Any) -> None:
    """Raise `ServiceFailed` if a page says that its server could not be asked."""
    found = (page.meta or {}).get(_OUTCOMES) or {}
    if any(each.get("status") != "ok" for each in found.values()):
        raise ServiceFailed("an MCP server cannot be reached")


def _result(result: Any) -> ToolResult:
    """Return a result of the protocol, whatever was asked for, as text and images."""
    blocks = list(islice(_blocks(result), _MAX_BLOCKS))
    texts = [text for text, _ in blocks if text]
    images = tuple(image for _, image in blocks if image)
    structured = getattr(result, "structured_content", None)
    if structured is not None and not texts:
        texts = [json.dumps(structured)]
    failed = bool(getattr(result, "is_error", False))
    text = "\n".join(part[:_MAX_TEXT] for part in texts)
    return ToolResult(
        text=mask_credentials(text[:_MAX_ERROR]) if failed else text,
        images=images,
        is_error=failed,
    )


def _blocks(result: Any) -> Iterator[tuple[str, str]]:
    """Yield the text and the image of each part of a result; either may be empty."""
    for block in getattr(result, "content", None) or ():
        yield _block(block)
    for resource in getattr(result, "contents", None) or ():
        yield _block(resource)
    for message in getattr(result, "messages", None) or ():
        text, image = _block(message.content)
        yield f"{message.role}: {text}", image
    for kind in ("resources", "prompts"):
        for each in getattr(result, kind, None) or ():
            told = each.model_dump(mode="json", exclude_none=True, exclude={"icons", "meta"})
            yield json.dumps(told), ""


def _block(block: Any) -> tuple[str, str]:
    inner = getattr(block, "resource", None)
    if inner is not None:
        return _block(inner)
    text, data = getattr(block, "text", None), getattr(block, "data", None)
    kind = str(getattr(block, "mime_type", None) or "")
    if text is not None:
        return str(text), ""
    if kind in _IMAGES and (encoded := data or getattr(block, "blob", None)):
        return "", f"data:{kind};base64,{encoded}"
    if (uri := getattr(block, "uri", None)) is not None:
        return f"[{kind or 'resource'}: {uri}]", ""
    return f"[{kind or 'content'} that cannot be shown]", ""


@contextmanager
def _as_service_failure(what: str) -> Iterator[None]:
    """Raise any error of LiteLLM's or of a server as `ServiceFailed`, without credentials."""
    try:
        yield
    except ServiceFailed:
        raise
    except Exception as exc:
        told = getattr(exc, "detail", None) or exc
        said = mask_credentials(str(told)[:_MAX_ERROR]) or type(exc).__name__
        raise ServiceFailed(f"{what}: {said}") from exc
