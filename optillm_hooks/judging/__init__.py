"""Votes over answers, and models that judge them."""
