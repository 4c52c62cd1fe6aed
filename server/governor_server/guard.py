"""A small process between the proxy and vLLM that takes vLLM down with the proxy, however the proxy ends.

vLLM is several processes, and the kernel's parent-death signal reaches only a direct child, and only while
the thread that forked it lives. So the proxy holds the writing end of this program's standard input: its end
of file means that the proxy is gone, by SIGKILL too, and the whole process group of the command is ended.
When the command ends first, its group is ended as well, and the exit status is passed on.

Run as a file, with the command as arguments; it imports the standard library only, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

GRACE_S = 8.0
POLL_S = 0.25
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> int:
    """Run `command` until it ends or standard input does; the exit status is the command's."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Orphans of the command come to us and are reaped here, where a container's init might leave them.
    control_process(PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=die_with_parent
    )
    # Nothing is ever written to standard input, so that being readable means its end.
    while child.poll() is None and not select.select([sys.stdin.fileno()], [], [], POLL_S)[0]:
        pass
    end(child)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def die_with_parent() -> None:
    """In the child: be killed with the guard, should the guard itself be killed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    control_process(PR_SET_PDEATHSIG, signal.SIGKILL)


def control_process(option: int, value: int) -> None:
    """prctl(2), where there is one."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value)


def end(child: subprocess.Popen[bytes]) -> None:
    """Ask the whole group to end, and kill what is left of it after a while."""
    signal_group(child.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline and alive(child):
        time.sleep(0.1)
    signal_group(child.pid, signal.SIGKILL)
    child.wait()


def alive(child: subprocess.Popen[bytes]) -> bool:
    """Whether any process of the group is left, once those that ended are reaped."""
    if child.poll() is not None:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    return signal_group(child.pid, 0)


def signal_group(group: int, number: int) -> bool:
    """Whether there was a process to send the signal to."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
