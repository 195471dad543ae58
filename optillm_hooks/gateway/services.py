"""The services of a request: those that the operator has switched on, for its caller."""

from litellm import Router

from optillm_hooks.gateway.caller import Caller
from optillm_hooks.gateway.code_runners import code_runner_for
from optillm_hooks.gateway.mcp_tools import GatewayTools
from optillm_hooks.gateway.web_access import page_reader, router_search
from optillm_hooks.services import Owner, Services
from optillm_hooks.settings import RunSettings, Settings


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
        owner=_owner(caller),
        fetch=page_reader(settings.web, caller.share),
        search=router_search(settings.web, router, caller),
        toolbox=None if caller.key is None else GatewayTools(caller),
        code_runner=code_runner_for(run.code_runner, settings.code_runner_options, caller.metadata),
    )


def _owner(caller: Caller) -> Owner:
    def named(field: str) -> str:
        return str(caller.metadata.get(field) or "")

    return Owner(
        key=named("user_api_key"),
        team=named("user_api_key_team_id"),
        user=named("user_api_key_user_id"),
    )
