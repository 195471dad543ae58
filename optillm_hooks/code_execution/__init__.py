"""Programs that a model wrote: running them where the operator allows it, and testing them."""
