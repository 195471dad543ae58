"""The services of a request: those that the operator has switched on, for its caller."""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Final

from litellm import Router
from litellm.proxy._types import UserAPIKeyAuth

from optillm_hooks.fanout import Background
from optillm_hooks.gateway.answer_check import answer_check_of
from optillm_hooks.gateway.caller import Caller
from optillm_hooks.gateway.code_runners import code_runner_for
from optillm_hooks.gateway.embeddings import router_embed
from optillm_hooks.gateway.mcp_tools import GatewayTools
from optillm_hooks.gateway.private_values import privacy_of
from optillm_hooks.gateway.web_access import page_reader, router_search
from optillm_hooks.pipeline.logs import format_traceback
from optillm_hooks.services import NoteKeeping, Owner, Services
from optillm_hooks.settings import RunSettings, Settings, StoreSettings
from optillm_hooks.store.store import Store

BACKGROUND: Final = Background(describe=format_traceback)
"""The work of this process after its answers."""


def services_for(
    run: RunSettings,
    settings: Settings,
    router: Router | None,
    caller: Caller,
) -> Services:
    """Return the services of a request. It does no work: each service begins when it is used.

    Args:
        run: the settings of the alias, or those of all requests.
        settings: the settings of all requests.
        router: the router that has the models; None if only LiteLLM's SDK is used.
        caller: on whose account the services are used.

    Raises:
        RequestRejected: a service needs an extra that is not installed.
    """
    return Services(
        owner=replace(
            owner_of(caller.key),
            end_user=str(caller.extra.get("user") or ""),
            session=caller.session,
        ),
        store=store_of(settings.store),
        notes=NoteKeeping(ttl_s=settings.memory.ttl_s) if settings.memory.store else None,
        embed=router_embed(settings.memory, router, caller),
        answer_check=answer_check_of(settings.answer_check),
        privacy=privacy_of(settings.privacy),
        learns=settings.spl.learning,
        later=partial(BACKGROUND.accept, caller.share),
        fetch=page_reader(settings.web, caller.share),
        search=router_search(settings.web, router, caller),
        toolbox=None if caller.key is None else GatewayTools(caller),
        code_runner=code_runner_for(run.code_runner, settings.code_runner_options, caller.metadata),
    )


def owner_of(key: UserAPIKeyAuth | None) -> Owner:
    """Return whose request it is. A Python program without a proxy has no key.

    The ids in a request's metadata are not used: a client may send some.
    """
    if key is None:
        return Owner()
    return Owner(key=key.api_key or "", team=key.team_id or "", user=key.user_id or "")


@cache
def store_of(settings: StoreSettings) -> Store:
    """Return the store of this process, which is opened when it is first used."""
    from platformdirs import user_data_dir

    directory = settings.directory or user_data_dir("optillm_hooks", appauthor=False)
    return Store(directory=Path(directory), url=settings.url)
