"""Serves Hugging Face causal language models in the proxy's process, one engine per model.

`provider` is the object for LiteLLM's `custom_provider_map`. It is created on first access, and
torch is imported with the first request, so naming it in a config costs nothing.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "provider":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from optillm_hooks.local_provider.custom_llm import LocalProvider

    globals()["provider"] = LocalProvider()
    return globals()["provider"]
