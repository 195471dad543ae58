"""Types of arguments that several commands take."""

import argparse
import math
from urllib.parse import urlsplit


def positive(text: str) -> int:
    """Return a number from 1.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a number from 1, got {text!r}")
    return int(text)


def above_zero(text: str) -> float:
    """Return a finite number above 0.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if (number := from_zero(text)) == 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text!r}")
    return number


def from_zero(text: str) -> float:
    """Return a finite number that is not negative.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number from 0, got {text!r}")
    return number


def base_url(text: str) -> str:
    """Return a URL of a host, to which the paths of routes are added.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"must begin with http:// or https://, got {text!r}")
    try:
        url = urlsplit(text)
        has_host = bool(url.hostname) and url.port != 0
    except ValueError:
        has_host = False
    if not has_host or not text.isprintable() or " " in text:
        raise argparse.ArgumentTypeError(f"must name a host and, if any, its port, got {text!r}")
    if url.query or url.path.rstrip("/").endswith("/chat/completions"):
        raise argparse.ArgumentTypeError(f"must end before /chat/completions, got {text!r}")
    return text
