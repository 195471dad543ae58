"""Decoding methods in the engine: how each sequence of a request is decoded."""
