"""The check of the proxy's YAML: what is wrong in it, where, and what to write instead."""

from optillm_hooks.gateway.config_check.checks import (
    malformed,
    problems,
    repeated_keys,
    unreachable_services,
    unset_variables,
)
from optillm_hooks.gateway.config_check.problem import Problem

__all__ = [
    "Problem",
    "malformed",
    "problems",
    "repeated_keys",
    "unreachable_services",
    "unset_variables",
]
