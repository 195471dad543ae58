"""Imports OptiLLM's `strategies.json`: `python -m optillm_hooks.store.import_strategies FILE ...`.

Of the questions that OptiLLM keeps as examples, only words that occur in several are taken, as
keywords. OptiLLM's counts are left out: they say how often a strategy looked applied, not whether
the answers were right.
"""

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, get_args

from platformdirs import user_data_dir
from sqlalchemy.exc import DBAPIError

from optillm_hooks.store.opening import open_file, open_url
from optillm_hooks.store.records import Method, Namespace, Scope, StoreUnusable
from optillm_hooks.store.store import FILE
from optillm_hooks.store.strategy_rows import AllRows

_WORD: Final = re.compile(r"[^\W\d_]{4,}")
_MAX_KEYWORDS: Final = 20


def methods(strategies: object) -> Iterator[Method]:
    """Yield what can be used of the strategies in OptiLLM's file.

    Those without a text, and placeholders of failed calls, are left out.

    Raises:
        ValueError: it is not a list of strategies.
    """
    if not isinstance(strategies, list) or not all(isinstance(each, dict) for each in strategies):
        raise ValueError("the file must hold a list of OptiLLM's strategies")
    for each in strategies:
        text = str(each.get("strategy_text") or "").strip()
        if text and not str(each.get("strategy_id")).startswith("fallback_"):
            kind = str(each.get("problem_type") or "general problem").replace("_", " ")
            yield Method(when=kind, keywords=_keywords(kind, each.get("examples")), steps=text)


def _keywords(kind: str, examples: Any) -> str:
    shared = Counter[str]()
    for example in examples if isinstance(examples, list) else ():
        shared.update({word.casefold() for word in _WORD.findall(str(example)[:10_000])})
    common = [word for word, count in shared.most_common(_MAX_KEYWORDS) if count > 1]
    return " ".join(dict.fromkeys([*kind.split(), *common]))


def main(argv: Sequence[str] | None = None) -> int:
    """Import a file, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m optillm_hooks.store.import_strategies")
    parser.add_argument("file", type=Path)
    parser.add_argument("--scope", choices=get_args(Scope), required=True)
    parser.add_argument("--owner", required=True, help="id of the team or user, or hash of the key")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--directory", type=Path, help="as in optillm_settings.store")
    place.add_argument("--url", help="as in optillm_settings.store")
    given = parser.parse_args(argv)
    try:
        found = list(methods(json.loads(given.file.read_text("utf-8"))))
    except (OSError, ValueError, RecursionError) as exc:
        parser.error(f"{given.file}: {exc}")
    directory = given.directory or Path(user_data_dir("optillm_hooks", appauthor=False))
    owner = Namespace(given.scope, given.owner)
    try:
        engine = open_file(directory / FILE) if given.url is None else open_url(given.url)
        with engine.begin() as connection:
            rows = AllRows(connection, time.time())
            added = sum(rows.add_strategy(owner, method) for method in found)
    except (OSError, StoreUnusable) as exc:
        parser.error(str(exc))
    except DBAPIError as exc:
        parser.error(f"the store does not answer: {exc.orig}")
    engine.dispose()
    sys.stdout.write(f"{added} strategies added, {len(found) - added} were there already\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
