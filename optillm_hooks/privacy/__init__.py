"""Reversible pseudonyms of private values: what is found in texts, replaced, and put back."""
