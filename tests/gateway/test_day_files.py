"""Files of lines: whole lines only, a bound on their size, and a mode that nobody else reads."""

import fcntl
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from stat import S_IMODE

import pytest

from optillm_hooks.gateway.day_files import END, DayFiles, append

DAY = date(2026, 3, 1)
MAX = 1 << 16


def saying(text: str) -> Callable[[], bytes]:
    return f"{text}\n".encode


def files_in(folder: Path, *, max_bytes: int = MAX, keep_days: int | None = None) -> DayFiles:
    return DayFiles(folder, "lines", max_bytes, keep_days)


def test_a_day_has_a_file_of_its_own_for_its_owner_only(tmp_path: Path) -> None:
    files = files_in(tmp_path / "new" / "folder")
    files.add(DAY, saying("one"))
    files.add(date(2026, 3, 2), saying("two"))
    files.add(DAY, saying("three"))
    files.thread.shutdown()
    written = {path.name: path.read_text() for path in files.directory.iterdir()}
    assert written == {"lines-2026-03-01.jsonl": "one\nthree\n", "lines-2026-03-02.jsonl": "two\n"}
    assert {S_IMODE(path.stat().st_mode) for path in files.directory.iterdir()} == {0o600}
    assert S_IMODE(files.directory.stat().st_mode) == 0o700


def test_an_existing_file_is_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch(0o644)
    append(path, b"x\n", MAX)
    assert S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"symbolic|links"):
        append(tmp_path / "link", b"x\n", MAX)
    assert not (tmp_path / "elsewhere").exists()


def test_writers_at_once_leave_whole_lines_and_one_last_line(tmp_path: Path) -> None:
    """Each append opens the file anew, so that threads meet as processes do."""
    path = tmp_path / "file"
    lines = [f"{number}-{'x' * (number % 977)}\n".encode() for number in range(400)]
    with ThreadPoolExecutor(8) as writers:
        kept = list(writers.map(lambda line: append(path, line, MAX), lines))
    written = path.read_bytes()
    assert len(written) <= MAX
    assert written.endswith(b"\n" + END)
    wanted = sorted(line for line, was_kept in zip(lines, kept, strict=True) if was_kept)
    assert sorted(written.removesuffix(END).splitlines(keepends=True)) == wanted
    assert 0 < len(wanted) < len(lines)


def test_a_writer_waits_for_another(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("ab") as other, ThreadPoolExecutor(1) as writer:
        fcntl.flock(other, fcntl.LOCK_EX)
        second = writer.submit(append, path, b"second\n", MAX)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.2)
        other.write(b"first\n")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_UN)
        assert second.result()
    assert path.read_bytes() == b"first\nsecond\n"


def test_after_the_last_line_even_a_short_one_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = files_in(tmp_path)
    for text in ("first", "x" * MAX, "short", "short"):
        files.add(DAY, saying(text))
    files.add(date(2026, 3, 2), saying("a new day"))
    files.thread.shutdown()
    assert (tmp_path / "lines-2026-03-01.jsonl").read_bytes() == b"first\n" + END
    assert (tmp_path / "lines-2026-03-02.jsonl").read_text() == "a new day\n"
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"optillm: {tmp_path}: lines-2026-03-01.jsonl is full: lines are left out"]


def test_a_line_that_is_cut_off_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    append(path, b"first\n", MAX)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:3]))
    with pytest.raises(OSError, match="space"):
        append(path, b"second\n", MAX)
    assert path.read_bytes() == b"first\n"


def test_a_problem_is_told_once_and_nobody_else_hears_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    files = files_in(tmp_path / "file" / "folder")
    for _ in range(3):
        files.add(DAY, saying("x"))
    files.thread.shutdown()
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "lines are left out: Not a directory" in record.getMessage()


def test_old_files_are_deleted_and_others_are_not(tmp_path: Path) -> None:
    for name in ("lines-2026-02-20.jsonl", "lines-2026-02-22.jsonl", "lines-mine.jsonl", "a"):
        (tmp_path / name).touch()
    files = files_in(tmp_path, keep_days=7)
    files.add(DAY, saying("x"))
    files.thread.shutdown()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a",
        "lines-2026-02-22.jsonl",
        "lines-2026-03-01.jsonl",
        "lines-mine.jsonl",
    ]
