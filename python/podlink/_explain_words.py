"""The words of an explanation, each a string."""

from __future__ import annotations

from enum import StrEnum

__all__ = [
    "Action",
    "CacheState",
    "Death",
    "LinkKind",
    "Reason",
    "StaleReason",
    "Standing",
]


class Action(StrEnum):
    """What ``compute_linked_pod`` would do now."""

    ANSWER_FROM_CACHE = "answer_from_cache"
    """Answer from the cache of this process; the store is not called."""
    KEEP_LINK = "keep_link"
    """Answer the stored link."""
    KEEP_UNTIL_CERTAIN = "keep_until_certain"
    """Answer the stored link and remember nothing: its pod may be dead, but that is not certain."""
    MAKE_LINK = "make_link"
    """Link the user to one of the candidates."""
    MOVE_USER = "move_user"
    """Move the user to one of the candidates."""
    CERTIFY_THEN_MOVE = "certify_then_move"
    """Have the pod declared dead, for good, then move the user to one of the candidates."""
    NO_ROUTABLE_POD = "no_routable_pod"
    """Fail with ``NoRoutablePodError``."""
    ASK_PEER = "ask_peer"
    """Call the peer of the user's namespace, which decides by its own rules."""
    FAIL = "fail"
    """Fail, as the explanation's own calls of the store or the peer did."""


class Reason(StrEnum):
    """Why a compute would do that."""

    CACHED = "cached"
    """What is remembered is still valid, and its pod READY and the same process."""
    SET_BY_PROGRAM = "set_by_program"
    """The program set it with ``set_cache``, and the pod is READY."""
    OWNER_READY = "owner_ready"
    """The linked pod is READY."""
    OWNER_DRAINING = "owner_draining"
    """The linked pod published DENY_NEW_CALL: it keeps its users and takes no new ones."""
    OWNER_SILENT = "owner_silent"
    """The linked pod is silent for longer than its lease, and so is the whole service. A compute
    takes that for an outage of the store and keeps the link; the pod may be dead all the same."""
    OWNER_SHUTDOWN = "owner_shutdown"
    """The linked pod published SHUTDOWN: it takes nothing any more."""
    DEATH_NOT_CERTAIN = "death_not_certain"
    """The linked pod's lease is over, but its grace is not: it may still be alive."""
    OWNER_DEAD = "owner_dead"
    """The linked pod stopped, or was declared dead, for good."""
    OWNER_LAPSED = "owner_lapsed"
    """The linked pod's lease and grace are over, and it was not declared dead yet."""
    OWNER_NEVER_SEEN = "owner_never_seen"
    """No process ever started under the linked pod's index."""
    OWNER_RESTARTED = "owner_restarted"
    """The linked pod came back as a new process, and ``on_restart`` is ``"best_pod"``."""
    OWNER_REFUSED = "owner_refused"
    """The linked pod said "not mine" (``misrouted``), and no process has claimed the user."""
    NO_LINK = "no_link"
    """The user has no link."""
    NO_ROUTABLE_POD = "no_routable_pod"
    """There is no link that can stand, and no pod is routable."""
    FOREIGN_NAMESPACE = "foreign_namespace"
    """The namespace is another one."""
    STORE_TROUBLE = "store_trouble"
    """The store does not answer, or holds a link that cannot be read."""
    PEER_TROUBLE = "peer_trouble"
    """The peer does not answer."""


class LinkKind(StrEnum):
    """How long a link lasts."""

    TEMPORARY = "temporary"
    """A routing hint with a time to live."""
    PERSISTENT = "persistent"
    """For ever: the owning pod made it."""
    UNKNOWN = "unknown"
    """Unknown: the peer's answer does not include it."""


class CacheState(StrEnum):
    """What this driver's cache holds of the user."""

    ABSENT = "absent"
    """Nothing."""
    VALID = "valid"
    """An answer that a compute gives."""
    STALE = "stale"
    """An answer that a compute does not give any more."""


class StaleReason(StrEnum):
    """Why a remembered answer is not given."""

    EXPIRED = "expired"
    """Its time is over."""
    PODS_NOT_READ = "pods_not_read"
    """The service's pods are not being read, so nothing confirms it."""
    POD_NOT_AVAILABLE = "pod_not_available"
    """Its pod is not available."""
    POD_DRAINING = "pod_draining"
    """Its pod published DENY_NEW_CALL, and may have given the user up."""
    POD_RESTARTED = "pod_restarted"
    """Its pod is another process now."""


class Standing(StrEnum):
    """What may be done with a pod, as the store shows it."""

    READY = "READY"
    """Alive, and takes new users unless it is overloaded."""
    DRAINING = "DRAINING"
    """Alive, keeps its users, takes no new ones."""
    SHUTDOWN = "SHUTDOWN"
    """Alive, takes nothing."""
    SILENT = "SILENT"
    """Its lease is over, and that is not judged: no pod of the service renewed and no client read
    meanwhile, so the store may have been away. Drivers that go on reading judge it by what follows;
    one look cannot."""
    LAPSED = "LAPSED"
    """Its lease is over."""
    UNKNOWN = "UNKNOWN"
    """It was withdrawn, or never published a state."""


class Death(StrEnum):
    """Whether a pod is dead for good."""

    UNKNOWN = "unknown"
    """No process was ever seen under its index, or that cannot be known."""
    NOT_YET = "not_yet"
    """It may be alive."""
    DUE = "due"
    """Lease and grace are over: the next lookup has it declared dead."""
    CERTIFIED = "certified"
    """It stopped, or was declared dead."""
