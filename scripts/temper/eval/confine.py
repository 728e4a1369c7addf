"""The child process of sandbox.py: shut itself in, then run an answer's code and its tests step by step.

Started as a program, `python -I -S confine.py`, with limits and steps on standard input; it needs no privilege.

Landlock leaves only Python's library and the system's libraries readable and nothing writable; a seccomp filter lets
through the system calls that computing needs and refuses all others, so there is no socket, process, mount or signal
to another process, for root neither, and nothing to keep up with when a kernel gains calls. Limits bound CPU time,
memory, files and dumps. Threads are possible: memory bounds them, and they end with the process.
Not covered: whether a path exists, and its size and times, can be asked (an import needs that).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence, Set

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any  # importing it takes a third of a run

CONFINED = "confined"  # the first line on standard output; anything else says why not
DONE = "done"

_READABLE = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/nix/store", "/etc/ld.so.cache")

# Audit number of each architecture, and its column in the tables below (Linux: asm/unistd.h, linux/audit.h).
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# Calls allowed with any arguments: name, number on x86_64 and on aarch64 (-1: not there).
_ALLOWED = """
read 0 63, write 1 64, close 3 57, fstat 5 80, lseek 8 62, pread64 17 67, readv 19 65, writev 20 66, dup 32 23,
mmap 9 222, mprotect 10 226, munmap 11 215, brk 12 214, mremap 25 216, madvise 28 233, membarrier 324 283,
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, sigaltstack 131 132, restart_syscall 219 128,
access 21 -1, faccessat 269 48, faccessat2 439 439, newfstatat 262 79, statx 332 291, getdents64 217 61,
getcwd 79 17, readlink 89 -1, readlinkat 267 78, pipe2 293 59, getsockname 51 204, recvfrom 45 207,
poll 7 -1, ppoll 271 73, pselect6 270 72, epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -1,
epoll_pwait 281 22, nanosleep 35 101, clock_nanosleep 230 115, clock_gettime 228 113, clock_getres 229 114,
gettimeofday 96 169, getrusage 98 165, times 100 153, sysinfo 99 179, uname 63 160, getrandom 318 278,
getpid 39 172, getppid 110 173, gettid 186 178, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177,
futex 202 98, set_robust_list 273 99, rseq 334 293, sched_yield 24 124, sched_getaffinity 204 123,
exit 60 93, exit_group 231 94
"""

# Offset in struct seccomp_data of the low half of argument n; the high half follows (both machines: little endian).
_ARGUMENT = (16, 24, 32, 40, 48, 56)
_ALL, _NULL = 0xFFFFFFFF, (0,)
_THREAD = 0x3D0F00  # the flags of pthread_create: same memory, files, signals and process

# Calls allowed only when each (offset, mask, values) holds.
_CHECKED = {
    # 0o1103 is the write modes, O_CREAT and O_TRUNC: before 6.2 Landlock knows no truncation.
    "openat 257 56": ((_ARGUMENT[2], 0o1103, _NULL),),
    # isatty, bytes waiting, non-blocking, close on exec; not the file attributes.
    "ioctl 16 29": ((_ARGUMENT[1], _ALL, (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)),),
    # Descriptors and flags; not F_SETOWN with F_SETSIG, which can send any signal to another process.
    "fcntl 72 25": ((_ARGUMENT[1], _ALL, (0, 1, 2, 3, 4, 1030)),),
    "prlimit64 302 261": ((_ARGUMENT[2], _ALL, _NULL), (_ARGUMENT[2] + 4, _ALL, _NULL)),  # asking only
    "clone 56 220": ((_ARGUMENT[0], _ALL, (_THREAD,)),),
    # A connected pair of this process's own, as asyncio makes; sending without an address.
    "socketpair 53 199": ((_ARGUMENT[0], _ALL, (1,)), (_ARGUMENT[1], 0xF, (1,))),
    "sendto 44 206": ((_ARGUMENT[4], _ALL, _NULL), (_ARGUMENT[4] + 4, _ALL, _NULL)),
    "kill 62 129": ((_ARGUMENT[0], _ALL, (os.getpid(),)),),
    "tgkill 234 131": ((_ARGUMENT[0], _ALL, (os.getpid(),)),),
}
_CLONE3 = 435

_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x50001, 0x50026

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant (struct sock_filter)


def _rule(number: int, checks: Sequence[tuple[int, int, tuple[int, ...]]], verdict: int = _ALLOW) -> list[Instruction]:
    """Return the instructions that end with `verdict` for one call, or with EPERM when one of its checks fails."""
    body: list[Instruction] = []
    for offset, mask, values in checks:
        body += [(_LOAD, 0, 0, offset), (_AND, 0, 0, mask)]
        body += [(_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)]
        body += [(_RETURN, 0, 0, _EPERM)]
    body += [(_RETURN, 0, 0, verdict)]
    return [(_EQUAL, 0, len(body), number), *body]


def _filter(machine: str) -> list[Instruction]:
    """Return the seccomp program: another architecture's calls kill, listed calls pass, all others fail with EPERM."""
    audit, column = _MACHINES[machine]
    program = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    calls = [(entry, ()) for entry in _ALLOWED.split(",")] + list(_CHECKED.items())
    for entry, checks in calls:
        if (number := int(entry.split()[1 + column])) >= 0:
            program += _rule(number, checks)
    program += _rule(_CLONE3, (), _ENOSYS)  # its flags are out of a filter's sight; the C library then takes clone
    return [*program, (_RETURN, 0, 0, _EPERM)]


def _limit(cpu_s: int, memory: int) -> None:
    """Set the limits: SIGXCPU after `cpu_s` seconds and SIGKILL one later, `memory` bytes of address space."""
    import resource

    limits = [(resource.RLIMIT_CPU, cpu_s, cpu_s + 1), (resource.RLIMIT_AS, memory, memory)]
    limits += [(resource.RLIMIT_FSIZE, 0, 0), (resource.RLIMIT_CORE, 0, 0), (resource.RLIMIT_NOFILE, 64, 64)]
    for name, soft, hard in limits:
        ceiling = resource.getrlimit(name)[1]  # a stricter limit of the caller's stays
        most = hard if ceiling == resource.RLIM_INFINITY else min(hard, ceiling)
        resource.setrlimit(name, (min(soft, most), most))


def _restrict_files(call: Any) -> None:
    """Let Landlock refuse all files and folders but the libraries, for reading (Linux: Landlock userspace API)."""
    import struct

    version = call("Landlock", "syscall", 444, None, 0, 1)
    actions = {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)  # how many rights on files this version knows
    rules = struct.pack("=3Q", 2**actions - 1, 0b11, 0b11)  # files; TCP bind and connect; abstract sockets and signals
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = call("Landlock", "syscall", 444, rules, size, 0)
    libraries = {f"{prefix}/{name}" for prefix in (sys.base_prefix, sys.base_exec_prefix) for name in ("lib", "lib64")}
    for path in sorted(libraries | set(_READABLE)):
        try:
            folder = os.open(path, os.O_PATH)
        except FileNotFoundError:
            continue
        rights = 0b1100 if os.path.isdir(path) else 0b0100  # list a folder, read a file
        call("Landlock", "syscall", 445, ruleset, 1, struct.pack("=Qi", rights, folder), 0)
        os.close(folder)
    call("Landlock", "syscall", 446, ruleset, 0)
    os.close(ruleset)


def _restrict_calls(call: Any, machine: str) -> None:
    import ctypes
    import struct

    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in _filter(machine))
    text = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(text))
    call("seccomp", "prctl", 22, 2, program, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def confine(cpu_s: int, memory: int) -> None:
    """Shut this process in for good; OSError says what the kernel lacks."""
    import ctypes

    machine = os.uname().machine
    if sys.platform != "linux" or machine not in _MACHINES or sys.maxsize < 2**32:
        raise OSError(f"there is no sandbox for {sys.platform} on {machine}")
    libc = ctypes.CDLL(None, use_errno=True)

    def call(what: str, name: str, *values: int | bytes | None) -> int:
        result = int(libc[name](*(ctypes.c_long(v) if isinstance(v, int) else v for v in values)))
        if result < 0:
            raise OSError(f"the kernel refuses {what}: {os.strerror(ctypes.get_errno())}")
        return result

    call("a parent's death signal", "prctl", 1, 9, 0, 0, 0)  # SIGKILL
    call("being kept from dumping", "prctl", 4, 0, 0, 0, 0)
    call("giving up new privileges", "prctl", 38, 1, 0, 0, 0)
    _limit(cpu_s, memory)
    _restrict_files(call)
    _restrict_calls(call, machine)


def plain(value: object) -> str:
    """Return a text that two plain values share when they are equal: numbers, text, bytes, lists, tuples, sets, dicts.

    Any other value becomes <its type>, whatever its own __eq__ says.
    """
    if isinstance(value, str):
        return repr(str.__str__(value))
    if isinstance(value, bytes | bytearray):
        return repr(bytes(value))
    if isinstance(value, list | tuple):
        both = "[]" if isinstance(value, list) else "()"
        return both[0] + ", ".join(map(plain, value)) + both[1]
    if isinstance(value, Set):
        return "set{" + ", ".join(sorted(map(plain, value))) + "}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(sorted(f"{plain(key)}: {plain(entry)}" for key, entry in value.items())) + "}"
    if hasattr(value, "as_integer_ratio"):
        return _number(value)
    return repr(value) if value is None or value is ... else f"<{type(value).__name__}>"


def _number(value: Any) -> str:
    """Return one text for 1, 1.0, True and Decimal(1), exactly as == has it."""
    try:
        top, bottom = value.as_integer_ratio()
    except (OverflowError, ValueError):  # infinite, or not a number
        return repr(float(value))
    if bottom == 1:
        return str(top)
    near = top / bottom
    return repr(near) if near.as_integer_ratio() == (top, bottom) else f"{top}/{bottom}"


def _step(kind: str, source: str, names: dict[str, Any]) -> str:
    """Run one step in `names`; return what it shows: done, a truth, None/True/False as such, or a plain value."""
    if kind == "run":
        exec(compile(source, "<answer>", "exec", dont_inherit=True), names)
        return DONE
    value = eval(compile(source, "<tests>", "eval", dont_inherit=True), names)
    if kind == "truth":
        return str(bool(value))
    if kind == "same":
        return str(value) if any(value is one for one in (None, True, False)) else f"<{type(value).__name__}>"
    return plain(value)


def main() -> None:
    """Read (CPU seconds, bytes, [(kind, source)]) from standard input; write one line a step, until one raises."""
    import marshal
    import types

    cpu_s, memory, steps = marshal.loads(sys.stdin.buffer.read())
    out = os.dup(1)
    os.dup2(2, 1)  # what the answer prints goes where its errors go: nowhere
    try:
        confine(cpu_s, memory)
        said = CONFINED
    except OSError as error:
        said, steps = str(error), []
    os.write(out, f"{said}\n".encode())
    answer = sys.modules["answer"] = types.ModuleType("answer")
    for kind, source in steps:
        try:
            said = _step(kind, source, answer.__dict__)
        except MemoryError:
            os.write(out, b"!MemoryError\n")  # nothing to be built: there is no memory
            break
        except BaseException as error:
            said = " ".join(f"!{type(error).__name__}: {error}"[:1000].split())
        os.write(out, said.encode("utf-8", "backslashreplace") + b"\n")
        if said[0] == "!":
            break
    os._exit(0)  # not through the answer's exit handlers and threads


if __name__ == "__main__":
    main()
