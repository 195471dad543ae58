"""LiteLLM for a command that runs without a proxy: it knows our providers, and prints nothing."""

import litellm
from litellm.utils import custom_llm_setup

from optillm_hooks import local_provider
from optillm_hooks.gateway import provider, scorer
from optillm_hooks.gateway.local_models import LOCAL_PROVIDER
from optillm_hooks.gateway.model_names import PROVIDER
from optillm_hooks.gateway.score_provider import SCORE_PROVIDER


def prepare() -> None:
    """Register the providers that the proxy's YAML registers otherwise (`custom_provider_map`)."""
    litellm.suppress_debug_info = True
    handlers = {
        PROVIDER: provider,
        LOCAL_PROVIDER: local_provider.provider,
        SCORE_PROVIDER: scorer,
    }
    litellm.custom_provider_map = [
        {"provider": name, "custom_handler": handler} for name, handler in handlers.items()
    ]
    custom_llm_setup()
