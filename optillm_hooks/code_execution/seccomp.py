"""The system calls that a program in Bubblewrap may not make, as a filter for the kernel.

They start processes, open sockets, trace or read other processes, change mounts and namespaces,
hold memory that the limits do not count, or load code into the kernel. `clone` is allowed for
threads only. Of `clone3`, whose flags a filter cannot see, the C library is told that it does not
exist.
"""

import errno
import platform
import struct
from dataclasses import dataclass
from typing import Final

_LOAD: Final = 0x20
_IF_EQUAL: Final = 0x15
_IF_AT_LEAST: Final = 0x35
_IF_BITS: Final = 0x45
_RETURN: Final = 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16

_ALLOW: Final = 0x7FFF0000
_ERROR: Final = 0x00050000
_KILL: Final = 0x80000000
_CLONE_THREAD: Final = 0x00010000
_X32: Final = 0x40000000
"""Bit of the numbers of x86's third interface, which has every call once more."""

_CLONE3: Final = 435
_SINCE_2019: Final = (
    *range(425, 434),  # io_uring, open_tree, move_mount and the calls for file systems
    438,  # pidfd_getfd
    442,  # mount_setattr
    447,  # memfd_secret
)
"""Numbers of newer calls, which are the same on all architectures."""


@dataclass(frozen=True, slots=True)
class _Architecture:
    audit: int
    clone: int
    denied: tuple[int, ...]


_ARCHITECTURES: Final = {
    "x86_64": _Architecture(
        audit=0xC000003E,
        clone=56,
        denied=(
            57, 58, 41, 101, 310, 311, 312,  # fork, vfork, socket, ptrace, process_vm_*, kcmp
            165, 166, 155, 161, 272, 308,  # mount, umount2, pivot_root, chroot, unshare, setns
            29, 68, 240, 319, 278,  # shmget, msgget, mq_open, memfd_create, vmsplice
            248, 249, 250, 321, 298, 323,  # keys, bpf, perf_event_open, userfaultfd
            175, 176, 313, 246, 320, 303, 304,  # modules, kexec, file handles
            163, 167, 168, 169, 103, 179,  # acct, swapon, swapoff, reboot, syslog, quotactl
            172, 173, 154, 300, 135,  # iopl, ioperm, modify_ldt, fanotify_init, personality
        ),
    ),
    "aarch64": _Architecture(
        audit=0xC00000B7,
        clone=220,
        denied=(
            198, 117, 270, 271, 272,
            40, 39, 41, 51, 97, 268,
            194, 186, 180, 279, 75,
            217, 218, 219, 280, 241, 282,
            105, 106, 273, 104, 294, 264, 265,
            89, 224, 225, 142, 116, 60,
            262, 92,
        ),
    ),
}  # fmt: skip


def supported() -> bool:
    """Return whether there is a filter for this machine's architecture."""
    return platform.machine() in _ARCHITECTURES


def filter_program(*, threads: bool) -> bytes:
    """Return the filter in the kernel's form.

    Args:
        threads: whether the program may start threads.
    """
    here = _ARCHITECTURES[platform.machine()]
    denied = _result(_ERROR | errno.EPERM)
    steps = [
        _load(_ARCHITECTURE),
        _step(_IF_EQUAL, here.audit, skip_if_not=0, skip_if=1),
        _result(_KILL),
        _load(_NUMBER),
        _step(_IF_AT_LEAST, _X32, skip_if_not=1),
        denied,
        _step(_IF_EQUAL, _CLONE3, skip_if_not=1),
        _result(_ERROR | errno.ENOSYS),
    ]
    for number in (*here.denied, *_SINCE_2019):
        steps += [_step(_IF_EQUAL, number, skip_if_not=1), denied]
    steps += [
        _step(_IF_EQUAL, here.clone, skip_if_not=3),
        _load(_FIRST_ARGUMENT),
        _step(_IF_BITS, _CLONE_THREAD if threads else 0, skip_if=1),
        denied,
        _result(_ALLOW),
    ]
    return b"".join(steps)


def _step(code: int, value: int, *, skip_if: int = 0, skip_if_not: int = 0) -> bytes:
    return struct.pack("=HBBI", code, skip_if, skip_if_not, value)


def _load(offset: int) -> bytes:
    return _step(_LOAD, offset)


def _result(value: int) -> bytes:
    return _step(_RETURN, value)
