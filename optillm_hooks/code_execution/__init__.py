"""Code execution: running and testing model-written programs, if the operator allows it."""
