"""From the text of an approach expression to answers: parse, resolve to a plan, run the plan."""
