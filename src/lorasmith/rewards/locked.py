"""Inside the sandbox: lock this process up, then run the code and its tests. Imports nothing of ours.

Started by sandbox.py as `python -I -S -B locked.py` in an empty folder, with a marshalled dict on standard input. The
last line of the output is the dict's `proof` if the tests passed, else what went wrong. Few imports: each program waits
for them.

A process locked by Linux has one thread, starts no other, and reaches no other: of the system's calls it keeps those
that work on its own memory, on its own files and on the clock (seccomp, an allow list). Files are opened where Landlock
allows it, or without Landlock for reading only.
"""

import ctypes
import marshal
import os
import resource
import struct
import sys
import types

# (x86_64, aarch64); -1: the machine has no such call. All others fail with ENOSYS: fork, clone, execve, socket, kill,
# ptrace, chmod, mkdir, link, io_uring, memfd_create and whatever later kernels bring.
CALLS = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "newfstatat": (262, 79), "stat": (4, -1),
    "lstat": (6, -1), "statx": (332, 291), "poll": (7, -1), "ppoll": (271, 73), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67), "pwrite64": (18, 68),
    "readv": (19, 65), "writev": (20, 66), "access": (21, -1), "faccessat": (269, 48), "faccessat2": (439, 439),
    "pipe2": (293, 59), "select": (23, -1), "pselect6": (270, 72), "sched_yield": (24, 124), "mremap": (25, 216),
    "madvise": (28, 233), "dup": (32, 23), "dup2": (33, -1), "dup3": (292, 24), "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169),
    "time": (201, -1), "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174),
    "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "uname": (63, 160), "ftruncate": (77, 46),
    "getdents64": (217, 61), "getcwd": (79, 17), "readlink": (89, -1), "readlinkat": (267, 78),
    "sigaltstack": (131, 132), "futex": (202, 98), "sched_getaffinity": (204, 123), "exit": (60, 93),
    "exit_group": (231, 94), "getrandom": (318, 278), "restart_syscall": (219, 128), "getrusage": (98, 165),
    "times": (100, 153), "sysinfo": (99, 179), "setitimer": (38, 103), "alarm": (37, -1),
}  # fmt: skip
CHANGES = {  # what changes a folder, kept where Landlock says which one
    "rename": (82, -1), "renameat": (264, 38), "renameat2": (316, 276), "unlink": (87, -1), "unlinkat": (263, 35),
}  # fmt: skip
OPENAT, FCNTL = (257, 56), (72, 25)
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, the kernel's name of the machine
KILL_PROCESS, ALLOW, ENOSYS = 0x80000000, 0x7FFF0000, 0x00050000 | 38
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # the same on every machine
READ_FILE, READ_DIR, WRITE_FILE, REMOVE_FILE, MAKE_FILE, TRUNCATE = 1 << 2, 1 << 3, 1 << 1, 1 << 5, 1 << 8, 1 << 14

CLOSED = ("os.", "socket.", "subprocess.", "shutil.", "ctypes.", "pty.", "signal.pthread_kill")  # kinds of audit events


def main() -> None:
    task = marshal.loads(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        lock(task)
    except (OSError, KeyError, ValueError) as error:
        say(f"not locked: {error}")
        os._exit(3)
    try:
        test(task["code"], task["tests"])
        end = task["proof"]
    except BaseException as error:  # SystemExit too: a program that ends has not passed its tests
        end = described(error)
    say(end)
    os._exit(0)


def say(line: str) -> None:
    """The last line of the output, past whatever the program made of sys.stdout."""
    os.write(1, b"\n" + line.encode("utf-8", "replace")[:250])


def described(error: BaseException) -> str:
    """One line: the kind of the error, its text where it gives one, and the line of the code or of the tests."""
    try:
        text = str(error).partition("\n")[0]
    except BaseException:
        text = ""
    place, frame = "", error.__traceback__
    while frame:
        name = frame.tb_frame.f_code.co_filename
        place = f" ({name}, line {frame.tb_lineno})" if name in ("code", "tests") else place
        frame = frame.tb_next
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


def test(code: str, tests: str) -> None:
    """Run the code, then its tests in the same module: statements, `test_` functions and unittest's cases."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    space = module.__dict__
    exec(compile(code, "code", "exec"), space)
    before = dict(space)
    exec(compile(tests, "tests", "exec"), space)
    made = {name: value for name, value in space.items() if before.get(name) is not value}
    for name, value in made.items():
        if name.startswith("test_") and isinstance(value, types.FunctionType):
            value()
        elif isinstance(value, type) and any(base.__module__ == "unittest.case" for base in value.__mro__[1:]):
            run_case(value)


def run_case(case: type) -> None:
    import unittest

    result = unittest.defaultTestLoader.loadTestsFromTestCase(case).run(unittest.TestResult())
    wrong = [*result.errors, *result.failures]
    if wrong:
        raise AssertionError(wrong[0][1].strip().splitlines()[-1])


def lock(task: dict[str, object]) -> None:
    """Limit this process as the task says, for good.

    Raises:
        OSError: If the system cannot.
        KeyError: If it is a machine whose calls are not listed here.
    """
    limit(task)
    if task["protection"] == "none":
        sys.addaudithook(refuse)
        return
    system = ctypes.CDLL(None, use_errno=True)
    # No new rights, no trace or dump of this process, an end with the one that started it.
    for option, value in ((38, 1), (4, 0), (1, 9)):
        called(system.prctl(option, value, 0, 0, 0))
    with_landlock = task["protection"] == "landlock"
    if with_landlock:
        close_files(system)
    program = syscall_filter(with_landlock)
    steps = ctypes.create_string_buffer(program)
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(steps)))
    called(system.prctl(22, 2, header, 0, 0))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def limit(task: dict[str, object]) -> None:
    seconds, memory, file = (int(task[key]) for key in ("cpu_seconds", "memory", "file"))  # type: ignore[call-overload]
    for name, value in (
        ("RLIMIT_AS", memory),
        ("RLIMIT_CPU", seconds),
        ("RLIMIT_FSIZE", file),
        ("RLIMIT_NOFILE", 64),
        ("RLIMIT_CORE", 0),
    ):
        # macOS knows RLIMIT_AS and refuses to set it; only a run without protection gets there.
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (ValueError, OSError):
            if task["protection"] != "none":
                raise


def called(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def close_files(system: ctypes.CDLL) -> None:
    """Landlock: write in this folder, flat, read Python's library, and open nothing else."""
    version = called(system.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1))
    handled = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    sheet = ctypes.create_string_buffer(struct.pack("Q", handled), 8)
    rules = called(system.syscall(LANDLOCK_CREATE, sheet, ctypes.c_size_t(8), 0))
    own = READ_FILE | READ_DIR | WRITE_FILE | REMOVE_FILE | MAKE_FILE | TRUNCATE
    library = {os.path.dirname(os.__file__), "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"}
    library |= {path for path in sys.path if os.path.isdir(path)}
    files = {"/etc/localtime": READ_FILE, "/dev/urandom": READ_FILE, "/dev/null": READ_FILE | WRITE_FILE}
    for path, access in {".": own, **dict.fromkeys(library, READ_FILE | READ_DIR), **files}.items():
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        rule = ctypes.create_string_buffer(struct.pack("=Qi", access & handled, place), 12)
        called(system.syscall(LANDLOCK_ADD, rules, 1, rule, 0))
        os.close(place)
    called(system.syscall(LANDLOCK_RESTRICT, rules, 0))
    os.close(rules)


def syscall_filter(with_landlock: bool) -> bytes:
    """A program of the kernel's packet filter (seccomp(2)) that allows the calls above and fails all others."""
    column, machine = MACHINES[os.uname().machine]

    def step(code: int, jump_true: int, jump_false: int, value: int) -> bytes:
        return struct.pack("HBBI", code, jump_true, jump_false, value)

    load, equal, and_, give = 0x20, 0x15, 0x54, 0x06
    steps = [step(load, 0, 0, 4), step(equal, 1, 0, machine), step(give, 0, 0, KILL_PROCESS), step(load, 0, 0, 0)]
    for numbers in (CALLS | CHANGES if with_landlock else CALLS).values():
        if numbers[column] >= 0:
            steps += [step(equal, 0, 1, numbers[column]), step(give, 0, 0, ALLOW)]
    # Reading and truncating in one passes the Landlock of kernels before 6.2; fcntl can name a receiver of signals.
    writing = os.O_TRUNC | os.O_ACCMODE
    modes = [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_TRUNC]
    opening = (writing, modes) if with_landlock else (writing | os.O_CREAT, [os.O_RDONLY])
    for numbers, argument, (mask, values) in (
        (OPENAT, 2, opening),
        (FCNTL, 1, (0xFFFFFFFF, [0, 1, 2, 3, 4, 1030])),  # duplicate, read and set flags
    ):
        block = [step(load, 0, 0, 16 + 8 * argument), step(and_, 0, 0, mask)]
        for value in values:
            block += [step(equal, 0, 1, value), step(give, 0, 0, ALLOW)]
        block.append(step(give, 0, 0, ENOSYS))
        steps += [step(equal, 0, len(block), numbers[column]), *block]
    return b"".join([*steps, step(give, 0, 0, ENOSYS)])


def refuse(event: str, arguments: tuple[object, ...]) -> None:
    """Without the system's protection: keep an honest program to this folder. No boundary for one that means harm."""
    if event == "open":
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        inside = isinstance(path, str) and os.path.dirname(os.path.realpath(path)) == os.path.realpath(".")
        if writes and not inside:
            raise PermissionError(f"no writing outside its folder: {path!r}")
    elif event.startswith(CLOSED) and event not in ("os.listdir", "os.scandir", "os.walk", "os.putenv", "os.unsetenv"):
        raise PermissionError(f"not in the sandbox: {event}")


if __name__ == "__main__":
    main()
