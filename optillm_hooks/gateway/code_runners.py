"""The code runner that the operator chose, with its options."""

from collections.abc import Mapping
from typing import Any

from optillm_hooks.code_execution.bubblewrap_runner import bubblewrap_runner
from optillm_hooks.code_execution.runner import CodeRunner, RunnerName, monty_runner
from optillm_hooks.gateway.sandboxes import sandbox_runner
from optillm_hooks.settings import CodeRunnerOptions


def code_runner_for(
    name: RunnerName, options: CodeRunnerOptions, metadata: Mapping[str, Any]
) -> CodeRunner | None:
    """Return the runner, or None for off.

    Args:
        name: the operator's choice, for all requests or an alias.
        options: the options of all runners.
        metadata: the caller, for LiteLLM's log.

    Raises:
        RequestRejected: it does not run here; the message says what is missing.
    """
    match name:
        case "off":
            return None
        case "monty":
            return monty_runner(options.monty.seconds, options.monty.memory_mb)
        case "bubblewrap":
            chosen = options.bubblewrap
            return bubblewrap_runner(chosen.python, chosen.binds, chosen.seconds, chosen.memory_mb)
        case "litellm":
            sandbox = options.litellm
            return sandbox_runner(sandbox.sandbox_tool, sandbox.template, sandbox.seconds, metadata)
