"""What the process tells podlink: that it was forked, and that it ends.

Both are asked for by ``import podlink``, long before the modules that need it are loaded, so that
what a program asks for after its import has the place that it expects: in a forked child behind
podlink, which then works there, and at exit in front of podlink, which then still works.
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
