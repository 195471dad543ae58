"""Chooses the runner of a model: all rows of a step together if possible, else one by one."""

import logging
from collections.abc import Mapping
from typing import Any

from optillm_hooks.local_provider.model_runner import AnyRunner, Unsupported
from optillm_hooks.local_provider.row_runner import RowRunner
from optillm_hooks.local_provider.runner import Runner

_log = logging.getLogger(__name__)


def runner_of(
    model: Any,
    adapters: Mapping[str, str] | None = None,
    steering: Mapping[str, str] | None = None,
    context: int | None = None,
) -> AnyRunner:
    """Return a `Runner` of the model, or a `RowRunner` if its attention cannot be replaced.

    Raises:
        ProviderFailed: neither can run it, or an adapter or steering vector is invalid.
    """
    attention = model.config._attn_implementation
    try:
        return Runner(model, adapters, steering, context)
    except Unsupported as exc:
        if attention is not None:
            model.set_attn_implementation(attention)
        rows = RowRunner(model, adapters, steering, context)
        _log.warning(
            "%s: its sequences run one after another, not in a batch: %s",
            model.config.model_type,
            exc.reason,
        )
        return rows
