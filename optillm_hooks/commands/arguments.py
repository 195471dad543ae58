"""Types of arguments that several commands take."""

import argparse


def positive(text: str) -> int:
    """Return a number from 1.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a number from 1, got {text!r}")
    return int(text)
