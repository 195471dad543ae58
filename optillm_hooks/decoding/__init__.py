"""Decoding methods: settings and pure functions, shared by the local engine and `remote`.

Nothing here imports torch. The implementation for the engine is in `local_provider.decoding`. Each
method is documented for users, with its deviations from the source, in `approaches`.
"""
