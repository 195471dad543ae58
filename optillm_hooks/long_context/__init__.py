"""Conversations that are longer than a model's context window."""
