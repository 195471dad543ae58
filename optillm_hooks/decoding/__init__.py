"""Decoding methods: each one's settings and pure functions, shared by the engine and by `remote`.

Nothing here imports torch. The engine's side of a method is `local_provider.decoding`.
"""
