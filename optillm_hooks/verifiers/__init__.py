"""Verifiers: they check answers by other means than a model's opinion."""
