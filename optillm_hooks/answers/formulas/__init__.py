"""Mathematical answers, plain or in LaTeX: reading them, and telling whether two are equal.

Nothing that a model writes is evaluated as code, simplified or expanded: a bounded text is read by
recursive descent (`reading`) into a small tree (`tree`), whose value is exact where it is rational
and else a handful of floating-point values at fixed points (`comparing`). So the time is linear in
the length, whatever is written, and everything is safe on the event loop and in any thread.
"""

from optillm_hooks.answers.formulas.comparing import Value, equal, scaled, value_of
from optillm_hooks.answers.formulas.reading import MEANINGFUL_WORDS, parse, plain

__all__ = ["MEANINGFUL_WORDS", "Value", "equal", "parse", "plain", "scaled", "value_of"]
