"""Answers: extraction from replies, equivalence, majority voting, and checks of their form."""
