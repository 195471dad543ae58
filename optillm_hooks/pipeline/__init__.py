"""The pipeline: parses an approach expression, resolves it to a plan, and runs the plan."""
