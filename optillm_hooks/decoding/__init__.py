"""Decoding methods: each one's settings and pure functions, shared by the engine and by `remote`.

Nothing here imports torch. The engine's side of a method is in `local_provider.decoding`, and its
documentation for users, deviations from the source included, in the docstring under `approaches`.
"""
