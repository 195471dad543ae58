"""Answers: extraction from replies, equivalence, majority voting, and format checks."""
