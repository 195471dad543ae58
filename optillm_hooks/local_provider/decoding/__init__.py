"""One decoding method per file: pure functions on what branches wrote, and the engine's method."""
