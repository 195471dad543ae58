"""The markers around the thinking of a reply."""

Markers = tuple[str, str]
"""What opens a block of thinking, and what closes it."""


MARKERS = THINK, THOUGHT = "<think>", "</think>"
"""Between which models think."""
