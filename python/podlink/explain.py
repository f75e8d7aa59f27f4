"""The state of a user, and what a compute would do: typed, and as readable text.

:meth:`podlink.ClientDriver.explain` returns an :class:`Explanation`; ``podlink explain`` prints
one. All of it is frozen; durations are seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ._explain_words import (
    Action,
    CacheState,
    Death,
    LinkKind,
    Reason,
    StaleReason,
    Standing,
)
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
    "OwnerFacts",
    "PodFacts",
    "Reason",
    "StaleReason",
    "Standing",
    "Trouble",
]


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
class OwnerFacts:
    """The process that owns the user, by the store's ownership record.

    Attributes:
        pod_id: its pod; 0 is a pod.
        incarnation: which process of the pod it is; ``None``: that is not known.
        token: the fencing token by which it owns the user.
    """

    pod_id: int
    incarnation: int | None
    token: int


@dataclass(frozen=True, slots=True)
class CacheFacts:
    """What this driver's cache holds.

    Attributes:
        state: nothing, a valid answer, or a stale one.
        why: why it is stale.
        pod_id: the remembered pod.
        incarnation: the process that the pod was then; ``None`` if it was not known.
        token: the token by which a process of the pod owned the user; ``None`` for a hint.
        left: how much longer it is valid, in seconds.
    """

    state: CacheState
    why: StaleReason | None
    pod_id: int | None
    incarnation: int | None
    token: int | None
    left: float | None


@dataclass(frozen=True, slots=True)
class PodFacts:
    """One pod, as the store shows it.

    Attributes:
        pod_id: the pod; 0 is a pod.
        standing: what may be done with it now.
        silent: seconds since its last renewal, by the store's clock, if it is ``SILENT``.
        routing_state: what it published last; ``None``, like what follows, if it is unknown.
        state: ``"READY"`` or ``"NOT_READY"``: whether its application is ready.
        load_state: its load; lower is better.
        update_time: when it published that: milliseconds since 1970, by the store's clock.
        incarnation: its process.
        age: seconds since it published that, by the store's clock; ``None`` also of a peer's pods.
        metadata: what it published.
        lease_left: seconds until its lease ends, by its own last renewal; 0 if it is over.
        death: whether it is dead for good.
        certain_in: seconds until its death can be certain, if it does not renew.
    """

    pod_id: int
    standing: Standing
    silent: float | None
    routing_state: RoutingState | None
    state: str | None
    load_state: int | None
    update_time: int | None
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
        owner_record: who owns the user; ``None``: no process does. A peer returns it only where the
            link agrees.
        overwritten: the link contradicts the record, because another program changed or removed it:
            the owner notices that and gives the user up.
        refused_by: the pods that said "not mine" of late, as this driver was notified.
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
    owner_record: OwnerFacts | None
    overwritten: bool
    refused_by: tuple[int, ...]
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
        rows = [("link", _link(self))]
        if self.trouble is None:
            rows.append(("owner", _owner(self)))
        if self.owner is not None:
            rows.append((f"pod {self.owner.pod_id}", _pod(self.owner)))
        rows.append(("cache", _cache(self.cache)))
        if self.refused_by:
            refused = " and ".join(f"pod {pod}" for pod in self.refused_by)
            rows.append(("refused", f'{refused} said "not mine"'))
        rows.append(("pods", _pods(self)))
        rows += _silent(self.pods)
        lines = [f"{user}: {_verdict(self)}", "", *columns(rows)]
        if self.candidates:
            lines += ["", _rule(self), *_candidates(self.candidates)]
        return "\n".join(lines)

    @classmethod
    def _from_core(cls, answer: str) -> Explanation:
        facts: dict[str, Any] = json.loads(answer)
        owner, trouble = facts["owner"], facts["trouble"]
        return cls(
            namespace=facts["namespace"],
            uid=facts["uid"],
            service_name=facts["service_name"],
            action=Action(facts["action"]),
            reason=Reason(facts["reason"]),
            answers=tuple(facts["answers"]),
            certain_in=facts["certain_in"],
            link=_link_facts(facts["link"]),
            owner_record=owner and OwnerFacts(owner["pod"], owner["incarnation"], owner["token"]),
            overwritten=facts["overwritten"],
            refused_by=tuple(facts["refused_by"]),
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
        token=facts["token"],
        left=facts["left"],
    )


def _pod_facts(facts: dict[str, Any]) -> PodFacts:
    routing_state = facts.get("routing_state")
    return PodFacts(
        pod_id=facts["pod"],
        standing=Standing(facts["standing"]),
        silent=facts["silent"],
        routing_state=routing_state and RoutingState(routing_state),
        state=facts.get("state"),
        load_state=facts.get("load_state"),
        update_time=facts.get("update_time"),
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
    Reason.CACHED: "what this process remembers is valid, and its pod READY",
    Reason.SET_BY_PROGRAM: "the program set the cache so, and the pod is READY",
    Reason.OWNER_READY: "the linked pod is READY",
    Reason.OWNER_DRAINING: "the linked pod drains: it keeps its users and takes no new ones",
    Reason.OWNER_SILENT: "the linked pod has been silent for longer than its lease",
    Reason.OWNER_SHUTDOWN: "the linked pod published SHUTDOWN",
    Reason.DEATH_NOT_CERTAIN: "the linked pod's lease is over, but it may still be alive",
    Reason.OWNER_DEAD: "the linked pod has stopped, or was declared dead",
    Reason.OWNER_LAPSED: "the linked pod's lease and grace are over",
    Reason.OWNER_NEVER_SEEN: "no process ever started under the linked pod's index",
    Reason.OWNER_RESTARTED: "the linked pod is a new process, and on_restart is best_pod",
    Reason.OWNER_REFUSED: 'the linked pod said "not mine", and no process owns the user',
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
    StaleReason.POD_DRAINING: "its pod drains, and may have given the user up",
    StaleReason.POD_RESTARTED: "its pod is another process now",
}


def _verdict(explained: Explanation) -> str:
    why = _WHY[explained.reason]
    if explained.reason is Reason.OWNER_SILENT and explained.owner is not None:
        why = f"the linked pod has been {silence(explained.owner.silent or 0.0)}"
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


def _owner(explained: Explanation) -> str:
    owner = explained.owner_record
    if owner is None:
        unknown = explained.link is not None and explained.link.kind is LinkKind.UNKNOWN
        return "none that the peer tells of" if unknown else "none: no process has claimed the user"
    process = "" if owner.incarnation is None else f", incarnation {owner.incarnation}"
    text = f"pod {owner.pod_id}{process}, token {owner.token}"
    return f"{text}; another program changed the link" if explained.overwritten else text


def _cache(cache: CacheFacts) -> str:
    if cache.state is CacheState.ABSENT:
        return "nothing about this user in this process"
    if cache.why is not None:
        return f"pod {cache.pod_id}, not believed: {_STALE[cache.why]}"
    token = "" if cache.token is None else f", token {cache.token}"
    return f"pod {cache.pod_id}{token}, for {_seconds(cache.left)}"


def _pod(pod: PodFacts) -> str:
    return ", ".join(_pod_words(pod))


def _pod_words(pod: PodFacts) -> Iterator[str]:
    yield pod.standing
    if pod.load_state is not None:
        yield f"load {pod.load_state}"
    if pod.silent is not None:
        yield silence(pod.silent)
    elif pod.lease_left > 0:
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
        case Death.NOT_YET if pod.lease_left <= 0 and pod.silent is None:
            yield f"may be alive for {_seconds(pod.certain_in)}"
        case _:
            pass


def silence(seconds: float) -> str:
    """What is known of a pod that has been silent for so long, and is not judged."""
    return f"silent for {seconds:.0f} s, not judged"


def _silent(pods: tuple[PodFacts, ...]) -> Iterator[tuple[str, str]]:
    silent = [f"pod {pod.pod_id} for {pod.silent:.0f} s" for pod in pods if pod.silent is not None]
    if silent:
        more = [f"{len(silent) - _ROWS} more"] if len(silent) > _ROWS else []
        yield "silent", f"{', '.join(silent[:_ROWS] + more)}; not judged, so they may be dead"


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
