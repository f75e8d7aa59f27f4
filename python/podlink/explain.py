"""The state of a user, and what a compute would do: typed, and as readable text.

:meth:`podlink.ClientDriver.explain` returns an :class:`Explanation`; ``podlink explain`` prints
one. All of it is frozen; durations are seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ._show import columns, one_line
from .state import RoutingState

__all__ = [
    "Action",
    "CacheFacts",
    "CacheState",
    "CandidateFacts",
    "Death",
    "Explanation",
    "LinkFacts",
    "LinkKind",
    "PodFacts",
    "Reason",
    "StaleReason",
    "Standing",
    "Trouble",
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
    """What is remembered is still valid, and its pod available and the same process."""
    SET_BY_PROGRAM = "set_by_program"
    """The program set it with ``set_cache``, and the pod is available."""
    OWNER_READY = "owner_ready"
    """The linked pod is READY."""
    OWNER_DRAINING = "owner_draining"
    """The linked pod published DENY_NEW_CALL: it keeps its users and takes no new ones."""
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


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """The link that the store holds.

    Attributes:
        pod_id: the pod; 0 is a pod.
        kind: how long it lasts.
        left: what is left of a temporary one, in seconds; of a peer's, how long it may be
            remembered; ``None`` of a persistent one.
    """

    pod_id: int
    kind: LinkKind
    left: float | None


@dataclass(frozen=True, slots=True)
class CacheFacts:
    """What this driver's cache holds.

    Attributes:
        state: nothing, a valid answer, or a stale one.
        why: why it is stale.
        pod_id: the remembered pod.
        incarnation: the process that the pod was then; ``None`` if it was not known.
        left: how much longer it is valid, in seconds.
    """

    state: CacheState
    why: StaleReason | None
    pod_id: int | None
    incarnation: int | None
    left: float | None


@dataclass(frozen=True, slots=True)
class PodFacts:
    """One pod, as the store shows it.

    Attributes:
        pod_id: the pod; 0 is a pod.
        standing: what may be done with it now.
        routing_state: what it published last; ``None``, like what follows, if it is unknown.
        state: ``"READY"`` or ``"NOT_READY"``: whether its application is ready.
        load_state: its load; lower is better.
        incarnation: its process.
        age: seconds since it published that, by the store's clock; ``None`` also of a peer's pods.
        metadata: what it published.
        lease_left: seconds until its lease ends; 0 if it is over.
        death: whether it is dead for good.
        certain_in: seconds until its death can be certain, if it does not renew.
    """

    pod_id: int
    standing: Standing
    routing_state: RoutingState | None
    state: str | None
    load_state: int | None
    incarnation: int | None
    age: float | None
    metadata: Mapping[str, str]
    lease_left: float
    death: Death
    certain_in: float | None


@dataclass(frozen=True, slots=True)
class CandidateFacts:
    """A pod that may get the user.

    Attributes:
        pod_id: the pod; 0 is a pod.
        load_state: the load that it published last.
        weight: its share relative to others (metadata ``weight``).
        sent: users that this process has sent there and that its load cannot show yet, scaled to
            all clients.
        weighed: what ``p2c`` compares: the load, plus what was sent by weight.
        chance: how probably the strategy chooses it, 0 to 1; ``None``: the program's own function
            decides.
    """

    pod_id: int
    load_state: int
    weight: float
    sent: float
    weighed: float
    chance: float | None


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why the store or the peer did not answer.

    Attributes:
        code: the error's code, like ``"STORE_UNAVAILABLE"``.
        message: its text.
    """

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The state of a user, and what a compute would do now. ``str()`` is readable text.

    Attributes:
        namespace, uid, service_name: the user and the service.
        action: what a compute would do.
        reason: why.
        answers: the pods that it may answer; one, if nothing is left to chance.
        certain_in: seconds until the death of the user's pod is certain, if that is what the user
            waits for.
        link: the stored link, or ``None``.
        cache: what this driver's cache holds.
        pods: every pod of the service that the store shows, and the user's own in any case.
        strategy: how the pod of a new user is chosen.
        overload_limit: a pod above this load gets no new users while another one is below.
        degraded: every READY pod is above it, and the least loaded stands in.
        candidates: the pods that may get new users.
        pods_age: how old the reading of the pods is that a compute would begin with; ``None``: it
            would have to read them first.
        foreign: whether the namespace is another one. Then the link and the pods are the peer's
            answers: without how long the link lasts, what is left of a dead pod's grace, and the
            peer's own cache and strategy.
        trouble: why the store or the peer did not answer; then there is only what this process
            knows.
    """

    namespace: str
    uid: str
    service_name: str
    action: Action
    reason: Reason
    answers: tuple[int, ...]
    certain_in: float | None
    link: LinkFacts | None
    cache: CacheFacts
    pods: tuple[PodFacts, ...]
    strategy: str
    overload_limit: int | None
    degraded: bool
    candidates: tuple[CandidateFacts, ...]
    pods_age: float | None
    foreign: bool
    trouble: Trouble | None

    @property
    def owner(self) -> PodFacts | None:
        """The pod of the link, or else of the cache."""
        pod_id = self.cache.pod_id if self.link is None else self.link.pod_id
        return next((pod for pod in self.pods if pod.pod_id == pod_id), None)

    def __str__(self) -> str:
        user = one_line(f"{self.uid} of {self.namespace}/{self.service_name}")
        rows = [("link", _link(self)), ("cache", _cache(self.cache))]
        if self.owner is not None:
            rows.insert(1, (f"pod {self.owner.pod_id}", _pod(self.owner)))
        rows.append(("pods", _pods(self)))
        lines = [f"{user}: {_verdict(self)}", "", *columns(rows)]
        if self.candidates:
            lines += ["", _rule(self), *_candidates(self.candidates)]
        return "\n".join(lines)

    @classmethod
    def _from_core(cls, answer: str) -> Explanation:
        facts: dict[str, Any] = json.loads(answer)
        trouble = facts["trouble"]
        return cls(
            namespace=facts["namespace"],
            uid=facts["uid"],
            service_name=facts["service_name"],
            action=Action(facts["action"]),
            reason=Reason(facts["reason"]),
            answers=tuple(facts["answers"]),
            certain_in=facts["certain_in"],
            link=_link_facts(facts["link"]),
            cache=_cache_facts(facts["cache"]),
            pods=tuple(map(_pod_facts, facts["pods"])),
            strategy=facts["strategy"],
            overload_limit=facts["overload_limit"],
            degraded=facts["degraded"],
            candidates=tuple(map(_candidate_facts, facts["candidates"])),
            pods_age=facts["pods_age"],
            foreign=facts["foreign"],
            trouble=trouble and Trouble(trouble["code"], trouble["message"]),
        )


def _link_facts(facts: dict[str, Any] | None) -> LinkFacts | None:
    if facts is None:
        return None
    kinds = {None: LinkKind.UNKNOWN, True: LinkKind.PERSISTENT, False: LinkKind.TEMPORARY}
    return LinkFacts(facts["pod"], kinds[facts["persistent"]], facts["left"])


def _cache_facts(facts: dict[str, Any]) -> CacheFacts:
    why = facts["why"]
    return CacheFacts(
        state=CacheState(facts["state"]),
        why=why and StaleReason(why),
        pod_id=facts["pod"],
        incarnation=facts["incarnation"],
        left=facts["left"],
    )


def _pod_facts(facts: dict[str, Any]) -> PodFacts:
    routing_state = facts.get("routing_state")
    return PodFacts(
        pod_id=facts["pod"],
        standing=Standing(facts["standing"]),
        routing_state=routing_state and RoutingState(routing_state),
        state=facts.get("state"),
        load_state=facts.get("load_state"),
        incarnation=facts.get("incarnation"),
        age=facts.get("age"),
        metadata=facts.get("metadata", {}),
        lease_left=facts["lease_left"],
        death=Death(facts["death"] or "unknown"),
        certain_in=facts["certain_in"],
    )


def _candidate_facts(facts: dict[str, Any]) -> CandidateFacts:
    return CandidateFacts(
        pod_id=facts["pod"],
        load_state=facts["load"],
        weight=facts["weight"],
        sent=facts["sent"],
        weighed=facts["weighed"],
        chance=facts["chance"],
    )


# --- As text --------------------------------------------------------------------------------------

# No more rows than fit on a screen.
_ROWS = 20

_WHY = {
    Reason.CACHED: "what this process remembers is valid, and its pod available",
    Reason.SET_BY_PROGRAM: "the program set the cache so, and the pod is available",
    Reason.OWNER_READY: "the linked pod is READY",
    Reason.OWNER_DRAINING: "the linked pod drains: it keeps its users and takes no new ones",
    Reason.OWNER_SHUTDOWN: "the linked pod published SHUTDOWN",
    Reason.DEATH_NOT_CERTAIN: "the linked pod's lease is over, but it may still be alive",
    Reason.OWNER_DEAD: "the linked pod has stopped, or was declared dead",
    Reason.OWNER_LAPSED: "the linked pod's lease and grace are over",
    Reason.OWNER_NEVER_SEEN: "no process ever started under the linked pod's index",
    Reason.OWNER_RESTARTED: "the linked pod is a new process, and on_restart is best_pod",
    Reason.NO_LINK: "the user has no link",
    Reason.NO_ROUTABLE_POD: "no pod takes new users",
    Reason.FOREIGN_NAMESPACE: "the namespace is not this driver's",
    Reason.STORE_TROUBLE: "the store",
    Reason.PEER_TROUBLE: "the peer",
}

_STALE = {
    StaleReason.EXPIRED: "its time is over",
    StaleReason.PODS_NOT_READ: "the service's pods are not being read",
    StaleReason.POD_NOT_AVAILABLE: "its pod is not available",
    StaleReason.POD_RESTARTED: "its pod is another process now",
}


def _verdict(explained: Explanation) -> str:
    why = _WHY[explained.reason]
    pods = _or(explained.answers)
    match explained.action:
        case Action.ANSWER_FROM_CACHE:
            return f"compute answers {pods} from the cache, because {why}"
        case Action.KEEP_LINK:
            return f"compute answers {pods}, because {why}"
        case Action.KEEP_UNTIL_CERTAIN:
            return (
                f"compute answers {pods} and remembers nothing, because {why}; that is certain "
                f"in {_seconds(explained.certain_in)}, and then the user is moved"
            )
        case Action.MAKE_LINK:
            return f"compute links the user to {pods}, because {why}"
        case Action.MOVE_USER:
            return f"compute moves the user to {pods}, because {why}"
        case Action.CERTIFY_THEN_MOVE:
            return f"compute has the pod declared dead and moves the user to {pods}, because {why}"
        case Action.NO_ROUTABLE_POD:
            return f"compute fails with POD_NOT_ROUTABLE, because {why}"
        case Action.ASK_PEER:
            return (
                f"compute asks the peer of {explained.namespace}, because {why}; as far as can be "
                f"seen from here it answers {pods}"
            )
        case Action.FAIL:
            trouble = explained.trouble or Trouble("INTERNAL_ERROR", "the cause is unknown")
            return one_line(f"compute fails with {trouble.code}: {trouble.message}")


def _or(pods: tuple[int, ...]) -> str:
    if not pods:
        return "no pod"
    shown = [f"pod {pod}" for pod in pods[:_ROWS]]
    if len(pods) > _ROWS:
        shown.append(f"{len(pods) - _ROWS} more")
    return " or ".join(shown)


def _seconds(time: float | None) -> str:
    return "?" if time is None else f"{time:.1f} s"


def _link(explained: Explanation) -> str:
    link = explained.link
    if link is None:
        return "unknown: no answer" if explained.trouble else "none"
    match link.kind:
        case LinkKind.PERSISTENT:
            return f"pod {link.pod_id}, persistent"
        case LinkKind.TEMPORARY:
            return f"pod {link.pod_id}, temporary, {_seconds(link.left)} left"
        case LinkKind.UNKNOWN:
            return f"pod {link.pod_id}, by the peer, which does not tell for how long"


def _cache(cache: CacheFacts) -> str:
    if cache.state is CacheState.ABSENT:
        return "nothing about this user in this process"
    if cache.why is not None:
        return f"pod {cache.pod_id}, not believed: {_STALE[cache.why]}"
    return f"pod {cache.pod_id}, for {_seconds(cache.left)}"


def _pod(pod: PodFacts) -> str:
    return ", ".join(_pod_words(pod))


def _pod_words(pod: PodFacts) -> Iterator[str]:
    yield pod.standing
    if pod.load_state is not None:
        yield f"load {pod.load_state}"
    if pod.lease_left > 0:
        yield f"lease {_seconds(pod.lease_left)}"
    elif pod.standing is Standing.LAPSED:
        yield "lease over"
    if pod.age is not None:
        yield f"published {_seconds(pod.age)} ago"
    if pod.incarnation is not None:
        yield f"incarnation {pod.incarnation}"
    match pod.death:
        case Death.CERTIFIED:
            yield "dead for good"
        case Death.DUE:
            yield "dead, not yet declared"
        case Death.NOT_YET if pod.lease_left <= 0:
            yield f"may be alive for {_seconds(pod.certain_in)}"
        case _:
            pass


def _pods(explained: Explanation) -> str:
    counts = [
        f"{count} {standing}"
        for standing in Standing
        if (count := sum(pod.standing is standing for pod in explained.pods))
    ]
    age = (
        "not being read"
        if explained.pods_age is None
        else f"read {_seconds(explained.pods_age)} ago"
    )
    return f"{', '.join(counts) or 'none'}; {age} by this process"


def _rule(explained: Explanation) -> str:
    limit = ""
    if explained.degraded:
        limit = f"; all are above overload_limit {explained.overload_limit}, so the least loaded is"
    elif explained.overload_limit is not None:
        limit = f"; loads above {explained.overload_limit} are left out"
    return f"candidates ({explained.strategy}{limit})"


def _candidates(candidates: tuple[CandidateFacts, ...]) -> list[str]:
    rows: list[tuple[str, ...]] = [("  POD", "LOAD", "SENT", "WEIGHED", "WEIGHT", "CHANCE")]
    for each in candidates[:_ROWS]:
        chance = "?" if each.chance is None else f"{each.chance:.0%}"
        numbers = (f"{number:g}" for number in (each.sent, each.weighed, each.weight))
        rows.append((f"  {each.pod_id}", str(each.load_state), *numbers, chance))
    more = len(candidates) - _ROWS
    return [*columns(rows), *([f"  and {more} more"] if more > 0 else [])]
