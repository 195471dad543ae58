"""What this process may use of the machine: processors and memory, as a container limits them."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")
_CPU_PATHS = ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct")
_MEMORY_PATHS = ("sys/fs/cgroup/memory",)


def cpus(root: Path = _ROOT) -> int:
    """Return the number of processors that this process may use: by affinity, and by quota.

    `root`: where the file system begins, with `proc` and `sys`.
    """
    return max(1, math.floor(min([len(_affinity()), *_quotas(root)])))


def cores(root: Path = _ROOT) -> int:
    """Return the number of physical cores of the processors in `cpus`.

    Of two hardware threads of one core, one computes as fast as both.
    """
    folder = root / "sys/devices/system/cpu"
    found = {_siblings(folder / f"cpu{cpu}" / "topology", cpu) for cpu in _affinity()}
    return min(len(found), cpus(root))


def memory_left_by_cgroup(root: Path = _ROOT) -> float:
    """Return the bytes that this process's control groups leave free; infinite without a limit.

    Cached files count as free: they are dropped if memory is needed.
    """
    return min(
        (
            limit - used + _file_cache(folder)
            for folder in _folders(root, "memory", _MEMORY_PATHS)
            for limit, used in [_memory(folder)]
        ),
        default=math.inf,
    )


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _siblings(topology: Path, cpu: int) -> str:
    """Return the hardware threads of a processor's core; only itself if they are not known."""
    return _read(topology / "thread_siblings_list") or str(cpu)


def _quotas(root: Path) -> Iterator[float]:
    """Yield the processors that the quota of each control group allows (v2, v1)."""
    for folder in _folders(root, "cpu", _CPU_PATHS):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        quota = quota or _read(folder / "cpu.cfs_quota_us")
        period = period or _read(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):  # not "max", not -1
            yield int(quota) / int(period)


def _memory(folder: Path) -> tuple[float, float]:
    """Return the limit and the use of memory of a control group, in bytes (v2, v1)."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limited = _read(folder / limit)
        if limited.isdecimal():
            return float(limited), float(_read(folder / used) or 0)
    return math.inf, 0.0


def _file_cache(folder: Path) -> float:
    """Return the memory of a control group's cached files, in bytes."""
    lines = (line.split() for line in _read(folder / "memory.stat").splitlines())
    found = {name: float(value) for name, value in lines}
    return found.get("total_inactive_file", found.get("inactive_file", 0.0))


def _folders(root: Path, controller: str, v1_paths: tuple[str, ...]) -> Iterator[Path]:
    """Yield the folders of this process's control groups for `controller`, with their parents."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        bases = ("sys/fs/cgroup",) if not controllers else v1_paths
        if controllers and controller not in controllers.split(","):
            continue
        inner = Path(group.lstrip("/"))
        for base in bases:
            # In a container the group may be named as the host sees it, and be mounted as the base.
            yield from (root / base / part for part in (inner, *inner.parents))


def _read(file: Path) -> str:
    """Return a file's text without blanks around it; "" if it cannot be read."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""
