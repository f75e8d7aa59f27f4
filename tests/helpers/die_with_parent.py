"""Become another program, one that dies with the process that started it.

    python die_with_parent.py PARENT_PID PROGRAM ARGUMENT...

A test run that is killed cannot clean up, and a server that survives it holds its port and its
memory until somebody notices. So the kernel is asked to do it. This happens in a program of its
own because Popen's `preexec_fn` is not safe in a process that has threads, and ours has.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def _main() -> None:
    parent, program, *arguments = sys.argv[1:]
    # Other systems have no such call; there, an aborted run leaves its servers behind.
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    # The parent may have died before the kernel knew what we want.
    if os.getppid() != int(parent):
        sys.exit("the parent is gone")
    os.execv(program, [program, *arguments])


if __name__ == "__main__":
    _main()
