"""The markers around a reply's thinking."""

Markers = tuple[str, str]
"""The opening and the closing marker."""

MARKERS = THINK, THOUGHT = "<think>", "</think>"
"""The markers of most reasoning models."""
