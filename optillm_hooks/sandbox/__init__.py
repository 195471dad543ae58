"""Sandboxed worker processes for model-written text: `client`, `zygote` and `worker`."""
