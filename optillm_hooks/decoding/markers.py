"""The markers around the thinking in a reply."""

Markers = tuple[str, str]
"""An opening and a closing marker."""

MARKERS = THINK_START, THINK_END = "<think>", "</think>"
"""The markers that most reasoning models use."""
