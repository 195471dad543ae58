"""The processors and the memory that a container leaves to this process."""

import math
import os
from pathlib import Path

import pytest

from optillm_hooks.machine import cores, cpus, memory_left_by_cgroup


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 processors on 32 cores, of which this process may use all."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    for cpu in range(64):
        put(
            tmp_path,
            f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list",
            f"{cpu % 32},{cpu % 32 + 32}\n",
        )
    return tmp_path


def put(root: Path, name: str, text: str) -> None:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_without_limits_all_processors_and_one_core_of_two_hardware_threads(machine: Path) -> None:
    assert (cpus(machine), cores(machine)) == (64, 32)
    assert memory_left_by_cgroup(machine) == math.inf


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "350000 100000\n"}, 3),
        (
            {
                "proc/self/cgroup": "0::/a.slice/b.scope\n",
                "sys/fs/cgroup/a.slice/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/a.slice/b.scope/cpu.max": "max 100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/docker/0a1b\n1:name=systemd:/x\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            64,
        ),
    ],
    ids=["v2", "v2 max", "half", "3.5", "v2 parent", "v1 in a container", "v1 unlimited"],
)
def test_a_quota_limits_processors_and_cores(
    machine: Path, files: dict[str, str], expected: int
) -> None:
    for name, text in files.items():
        put(machine, name, text)
    assert (cpus(machine), cores(machine)) == (expected, min(expected, 32))


def test_affinity_limits_processors_and_cores(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 32, 40})
    assert (cpus(machine), cores(machine)) == (4, 3)


def test_a_system_without_affinity_or_topology_has_its_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert (cpus(tmp_path), cores(tmp_path)) == (8, 8)


@pytest.mark.parametrize(
    ("files", "left"),
    [
        (
            {
                "proc/self/cgroup": "0::/pod/app\n",
                "sys/fs/cgroup/pod/memory.max": "1000\n",
                "sys/fs/cgroup/pod/memory.current": "700\n",
                "sys/fs/cgroup/pod/memory.stat": "anon 400\ninactive_file 200\n",
                "sys/fs/cgroup/pod/app/memory.max": "max\n",
                "sys/fs/cgroup/pod/app/memory.current": "600\n",
            },
            500,
        ),
        (
            {
                "proc/self/cgroup": "9:memory:/app\n",
                "sys/fs/cgroup/memory/app/memory.limit_in_bytes": "1000\n",
                "sys/fs/cgroup/memory/app/memory.usage_in_bytes": "700\n",
                "sys/fs/cgroup/memory/app/memory.stat": "cache 9\ntotal_inactive_file 100\n",
            },
            400,
        ),
    ],
    ids=["v2", "v1"],
)
def test_memory_is_left_below_the_limit_of_a_group_and_cached_files_count_as_free(
    machine: Path, files: dict[str, str], left: int
) -> None:
    for name, text in files.items():
        put(machine, name, text)
    assert memory_left_by_cgroup(machine) == left
