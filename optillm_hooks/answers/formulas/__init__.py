"""Mathematical answers in plain text or LaTeX: parsing them and testing them for equality.

A model's text is never evaluated as code, simplified or expanded. A recursive descent parser
(`reading`) converts a text of limited length to a small syntax tree (`tree`). The value of a tree
is exact if it is rational; otherwise it is a few floating-point values at fixed points
(`comparing`). So the time is linear in the length, and everything is safe on the event loop and in
any thread.
"""

from optillm_hooks.answers.formulas.comparing import Value, equal, multiple, scaled, value_of
from optillm_hooks.answers.formulas.reading import MEANINGFUL_WORDS, parse, parse_unsolved, plain
from optillm_hooks.answers.formulas.solving import in_order_of_names, solution
from optillm_hooks.answers.formulas.tree import Apply

__all__ = [
    "MEANINGFUL_WORDS",
    "Apply",
    "Value",
    "equal",
    "in_order_of_names",
    "multiple",
    "parse",
    "parse_unsolved",
    "plain",
    "scaled",
    "solution",
    "value_of",
]
