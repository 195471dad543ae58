"""Answers as values: reading them off replies, comparing them, voting, and checking their form."""
