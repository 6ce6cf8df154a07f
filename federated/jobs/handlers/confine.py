"""Landlock and seccomp: what a runner process gives up before it runs an operator's program.

    python -I -S confine.py

tries it and ends with status 0 where the kernel has both. `runner_main` loads this file by its
path, so it imports the standard library alone. What a program may still do, from here on and in all
that it starts: read and run what lies beneath the folders named; write to /dev/null; use pipes, and
sockets only where the network is allowed. It cannot leave its process group, so that killing the
group ends all of it; nor signal, trace or limit a process outside, mount, make namespaces, keep
memory beyond its own limit (shared segments, memory files), nor reach the kernel by ways that go
around these rules (io_uring, bpf, keys).

Landlock knows TCP since its version 4 and signals since 6; seccomp covers both where it is older.
Source: kernel documentation, userspace-api/landlock and seccomp_filter; tables of x86-64 and arm64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import stat
import struct
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULESET_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE: Final = 1 << 14
# Rights that each version of Landlock knows, and those that a file can be given.
_FS_RIGHTS: Final = ((5, 16), (3, 15), (2, 14), (1, 13))
_FILE_RIGHTS: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_TCP_SINCE, _TCP_RIGHTS = 4, 3
_SCOPES_SINCE, _SCOPES = 6, 3

_PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 22, 24, 38
_SECCOMP_MODE_FILTER: Final = 2
_CAPABILITIES: Final = 64
_CAPABILITY_VERSION: Final = 0x20080522

_LOAD, _EQUAL, _AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NEW_NAMESPACES: Final = 0x7E020080
_X32: Final = 0x40000000
_AT_NUMBER, _AT_ARCH, _AT_ARGUMENT = 0, 4, 16

# Refused whatever their arguments; (x86-64, arm64), None where there is none.
_REFUSED: Final[Mapping[str, tuple[int | None, int | None]]] = {
    "acct": (163, 89), "add_key": (248, 217), "adjtimex": (159, 171), "bpf": (321, 280),
    "chroot": (161, 51), "clock_adjtime": (305, 266), "clock_settime": (227, 112),
    "delete_module": (176, 106), "fanotify_init": (300, 262), "finit_module": (313, 273),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fsopen": (430, 430), "fspick": (433, 433),
    "init_module": (175, 105), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425), "ioperm": (173, None), "iopl": (172, None), "kcmp": (312, 272),
    "kexec_file_load": (320, 294), "kexec_load": (246, 104), "keyctl": (250, 219),
    "lookup_dcookie": (212, 18), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "migrate_pages": (256, 238), "mount": (165, 40), "mount_setattr": (442, 442),
    "move_mount": (429, 429), "move_pages": (279, 239), "mq_open": (240, 180),
    "msgget": (68, 186), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "open_tree": (428, 428), "perf_event_open": (298, 241), "personality": (135, 92),
    "pidfd_getfd": (438, 438), "pivot_root": (155, 41), "process_madvise": (440, 440),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "ptrace": (101, 117),
    "quotactl": (179, 60), "reboot": (169, 142), "request_key": (249, 218), "semget": (64, 190),
    "setdomainname": (171, 162), "sethostname": (170, 161), "setns": (308, 268),
    "setpgid": (109, 154), "setpriority": (141, 140), "setsid": (112, 157),
    "settimeofday": (164, 170), "shmget": (29, 194), "swapoff": (168, 225), "swapon": (167, 224),
    "syslog": (103, 116), "umount2": (166, 39), "unshare": (272, 97), "userfaultfd": (323, 282),
}  # fmt: skip
# Where Landlock does not keep signals within: those to oneself alone.
_SIGNALS: Final = {
    "pidfd_send_signal": (424, 424), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "tkill": (200, 130),
}  # fmt: skip
_KILL_CALLS: Final = {"kill": (62, 129), "tgkill": (234, 131)}
_CLONE, _CLONE3, _PRLIMIT, _SOCKET = (56, 220), (435, 435), (302, 261), (41, 198)
_CAPSET: Final = (126, 91)
_MACHINES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

# What any program reads of its system, and the devices that are none.
SYSTEM: Final = (
    "/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/ld.so.conf",
    "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime", "/etc/mime.types", "/proc/self",
    "/proc/meminfo", "/proc/cpuinfo", "/proc/stat", "/dev/random", "/dev/urandom", "/dev/zero",
)  # fmt: skip
_WRITABLE: Final = ("/dev/null", "/dev/full")
_PROBED: Final = "/etc/passwd"


def confine(read: Iterable[str], *, network: bool, abi: int | None = None) -> None:
    """Give everything up but what this module says; for good.

    Args:
        read: files and folders that may be read and run besides the system's.
        network: whether sockets of the Internet's families may be made.
        abi: act as that version of Landlock at most; None: the kernel's.

    Raises:
        OSError: it cannot be done here. Whoever called must not go on.
    """
    kernel = landlock_abi()
    found = kernel if abi is None else min(abi, kernel)
    machine = _MACHINES.get(platform.machine())
    if found < 1 or machine is None or sys.byteorder != "little":
        raise OSError(errno.ENOSYS, "no Landlock, or a machine whose system calls are not known")
    _drop_capabilities(machine[0])
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _landlock(read, found, network=network)
    _seccomp(_program(*machine, scoped=found >= _SCOPES_SINCE, network=network))


def landlock_abi() -> int:
    """The kernel's version of Landlock; 0 without."""
    if sys.platform != "linux":
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    found = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _RULESET_VERSION)
    return max(0, int(found))


def _call(number: int, *arguments: object) -> int:
    result = int(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"system call {number}: {os.strerror(code)}")
    return result


def _prctl(option: int, value: int, pointer: object = None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    last = ctypes.c_ulong(0) if pointer is None else pointer
    zero = ctypes.c_ulong(0)
    if libc.prctl(option, ctypes.c_ulong(value), last, zero, zero) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl {option}: {os.strerror(code)}")


def _drop_capabilities(column: int) -> None:
    """A program needs none, not even where the daemon runs as root."""
    if os.geteuid() != 0:
        return
    for capability in range(_CAPABILITIES):
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno == errno.EINVAL:
                break  # the kernel knows no more
            raise
    head = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0))
    _call(_CAPSET[column], head, ctypes.create_string_buffer(24))


def _landlock(read: Iterable[str], abi: int, *, network: bool) -> None:
    rights = next((1 << count) - 1 for least, count in _FS_RIGHTS if abi >= least)
    tcp = _TCP_RIGHTS if abi >= _TCP_SINCE and not network else 0
    scopes = _SCOPES if abi >= _SCOPES_SINCE else 0
    size = 24 if abi >= _SCOPES_SINCE else 16 if abi >= _TCP_SINCE else 8
    head = ctypes.create_string_buffer(struct.pack("=QQQ", rights, tcp, scopes)[:size], size)
    ruleset = _call(_CREATE_RULESET, head, ctypes.c_size_t(size), 0)
    try:
        for path in (*SYSTEM, *read):
            _allow(ruleset, path, _EXECUTE | _READ_FILE | _READ_DIR)
        for path in _WRITABLE:
            _allow(ruleset, path, (_WRITE_FILE | _READ_FILE | _TRUNCATE) & rights)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    """Rights beneath a path; nothing if it is not there."""
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(opened).st_mode):
            rights &= _FILE_RIGHTS
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, opened), 12)
        _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(opened)


def _program(column: int, arch: int, *, scoped: bool, network: bool) -> list[bytes]:
    """The filter: classic BPF over the number and the arguments of each system call."""
    refuse, absent = _give(_ERRNO | errno.EPERM), _give(_ERRNO | errno.ENOSYS)
    own = (0, os.getpid())
    out = [_load(_AT_ARCH), _jump(_EQUAL, arch, 1, 0), _give(_KILL), _load(_AT_NUMBER)]
    if column == 0:
        out += [_jump(_AT_LEAST, _X32, 0, 1), absent]
    refused = {**_REFUSED, **({} if scoped else _SIGNALS)}
    for _, numbers in sorted(refused.items()):
        number = numbers[column]
        if number is not None:
            out += [_jump(_EQUAL, number, 0, 1), refuse]
    # With clone3 flags lie in memory that a filter cannot see: C libraries then use clone.
    out += [_jump(_EQUAL, _CLONE3[column], 0, 1), absent]
    out += _when(_CLONE[column], [_jump(_HAS_BITS, _NEW_NAMESPACES, 0, 1), refuse])
    out += _when(_PRLIMIT[column], _unless(own, refuse))
    families = (socket.AF_INET, socket.AF_INET6, 16) if network else ()  # 16: netlink, for names
    out += _when(_SOCKET[column], _unless(families, _give(_ERRNO | errno.EACCES)))
    if not scoped:
        for _, numbers in sorted(_KILL_CALLS.items()):
            out += _when(numbers[column], _unless(own, refuse))
    return [*out, _give(_ALLOW)]


def _when(number: int, then: list[bytes]) -> list[bytes]:
    """`then` for a call of that number, with its first argument loaded; else what follows."""
    body = [_load(_AT_ARGUMENT), *then, _give(_ALLOW)]
    return [_jump(_EQUAL, number, 0, len(body)), *body]


def _unless(allowed: Iterable[int], otherwise: bytes) -> list[bytes]:
    """Allow these first arguments, and `otherwise` for the rest."""
    found: list[bytes] = []
    for value in allowed:
        found += [_jump(_EQUAL, value, 0, 1), _give(_ALLOW)]
    return [*found, otherwise]


def _load(at: int) -> bytes:
    return struct.pack("=HBBI", _LOAD, 0, 0, at)


def _jump(how: int, value: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("=HBBI", how, if_true, if_false, value)


def _give(action: int) -> bytes:
    return struct.pack("=HBBI", _RETURN, 0, 0, action)


def _seccomp(program: list[bytes]) -> None:
    code = ctypes.create_string_buffer(b"".join(program))
    head = ctypes.create_string_buffer(
        struct.pack("@HxxxxxxP", len(program), ctypes.addressof(code))
    )
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(head))


def main() -> int:
    """Try it: 0 if what was given up is out of reach."""
    try:
        confine((), network=False)
    except OSError as error:
        print(error, file=sys.stderr)  # noqa: T201 - for whoever runs it by hand
        return 1
    return 0 if all(_out_of_reach(reach) for reach in (_read_probed, _make_socket, _leave)) else 1


def _out_of_reach(reach: Callable[[], None]) -> bool:
    try:
        reach()
    except OSError:
        return True
    return False


def _read_probed() -> None:
    os.close(os.open(_PROBED, os.O_RDONLY))


def _make_socket() -> None:
    socket.socket().close()


def _leave() -> None:
    os.setsid()


if __name__ == "__main__":
    sys.exit(main())
