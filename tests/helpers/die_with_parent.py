"""Become another program, one that dies with the process that started it.

    python die_with_parent.py [--as USER] [--signal NUMBER] PARENT_PID PROGRAM ARGUMENT...

A test run that is killed cannot clean up, and a server that survives it holds its port and its
memory until somebody notices. So the kernel is asked to do it. This happens in a program of its
own because Popen's `preexec_fn` is not safe in a process that has threads, and ours has.

With `--as` the program runs as that user: databases refuse to run as root. The user changes here,
because the kernel forgets the wish of a process that changes its user later. `--signal` is the
signal that the program gets, in place of SIGKILL.
"""

import ctypes
import os
import pwd
import signal
import sys

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def _main() -> None:
    user, death, rest = "", int(signal.SIGKILL), sys.argv[1:]
    while rest[0] in {"--as", "--signal"}:
        option, value, *rest = rest
        if option == "--as":
            user = value
        else:
            death = int(value)
    parent, program, *arguments = rest
    if user:
        account = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    # Other systems have no such call; there, an aborted run leaves its servers behind.
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, death, 0, 0, 0) != 0:
            sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    # The parent may have died before the kernel knew what we want.
    if os.getppid() != int(parent):
        sys.exit("the parent is gone")
    os.execv(program, [program, *arguments])


if __name__ == "__main__":
    _main()
