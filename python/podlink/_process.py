"""Hooks of the process: it was forked, and it ends.

Both are registered by ``import podlink``, long before the modules that need them are loaded. So
hooks that a program registers after its import run in the order that it expects: in a forked child
after podlink's, and at exit before podlink's, so that podlink works in both.
"""

import atexit
import os

TYPE_CHECKING = False  # `typing` itself would cost more than all of this package's import
if TYPE_CHECKING:
    from collections.abc import Callable

in_forked_child: "list[Callable[[], None]]" = []
"""Called in a child, in this order."""

at_exit: "list[Callable[[], None]]" = []
"""Called when the interpreter ends, in this order."""


def _forked() -> None:
    for call in in_forked_child:
        call()


@atexit.register
def _ends() -> None:
    for call in at_exit:
        call()


os.register_at_fork(after_in_child=_forked)
