"""The two objects that a proxy's YAML names: `hook` in `callbacks`, `provider` as handler."""

import optillm_hooks.approaches  # noqa: F401 (registers them)
from optillm_hooks.gateway.callback import Hook
from optillm_hooks.gateway.custom_llm import Provider
from optillm_hooks.gateway.startup import log_like_litellm, log_problems
from optillm_hooks.registry import load_entry_points

log_like_litellm()
load_entry_points()
log_problems()

hook = Hook()
provider = Provider()

__all__ = ["hook", "provider"]
