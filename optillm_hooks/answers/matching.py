"""Matches a text with a regular expression of a stranger's. Only a worker may call it."""

import re


def matches(pattern: str, text: str) -> bool | None:
    """Return whether `pattern` is found in `text`; None if it is no regular expression."""
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return None
    return compiled.search(text) is not None
