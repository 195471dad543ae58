"""Measures what approaches are worth on problems whose answers are known."""
