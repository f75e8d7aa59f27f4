"""Which pod this process is."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from . import _podlink
from .errors import InvalidParameterError, InvalidParameterTypeError

__all__ = ["ServerInfo"]

_NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """This pod's identity.

    Attributes:
        namespace: its namespace.
        service_name: its stateful service.
        pod_index: its StatefulSet ordinal; 0 is a pod, and the first need not be 0.
        pod_name: its name, published as metadata ``podName`` if it is not empty.
        metadata: address, version, labels: published with every state. ``weight``, a positive
            number, is the pod's share of new users relative to the others.
        pod_uid: the Kubernetes pod UID, if it is known: a container that is restarted inside the
            same pod then need not wait for its own old lease.

    Raises:
        InvalidParameterError: a part is not of the allowed form; the text names it.
    """

    namespace: str
    service_name: str
    pod_index: int
    pod_name: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    pod_uid: str = ""

    def __post_init__(self) -> None:
        _podlink.check_pod(self.namespace, self.service_name, self.pod_index)
        _check("pod_name", "pod_name", self.pod_name)
        _check("pod_uid", "pod_uid", self.pod_uid)
        self._published()

    def _published(self) -> dict[str, str]:
        """The metadata as the pod publishes it. Checked each time: a mapping may be changed."""
        _check("metadata", "metadata", self.metadata, Mapping)
        metadata = dict(self.metadata)
        for key, value in metadata.items():
            _check("metadata", "a key of metadata", key)
            _check("metadata", f"metadata[{key[:40]!r}]", value)
        if self.pod_name:
            metadata.setdefault("podName", self.pod_name)
        return metadata

    @classmethod
    def from_env(
        cls,
        service_name: str | None = None,
        *,
        pod_index: int | None = None,
        namespace: str | None = None,
        metadata: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> ServerInfo:
        """Reads this pod's identity from what Kubernetes gives it.

        The pod index is ``pod_index``, else ``POD_INDEX``, else the number after the last ``-``
        of ``POD_NAME``, else of the host name. The namespace is ``namespace``, else
        ``POD_NAMESPACE``, else the service account's. The service is ``service_name``, else
        ``SERVICE_NAME``, else the part of the pod's name before the index. ``POD_UID`` is taken
        if it is there.

        Raises:
            InvalidParameterError: something was not found; the text says where it was looked
                for.

        Example:
            >>> ServerInfo.from_env(environ={"POD_NAME": "game-3", "POD_NAMESPACE": "prod"})
            ServerInfo(namespace='prod', service_name='game', pod_index=3, pod_name='game-3', \
metadata={}, pod_uid='')
        """
        environ = os.environ if environ is None else environ
        pod_name = environ.get("POD_NAME") or socket.gethostname()
        stem, ordinal = _split(pod_name)
        return cls(
            namespace=namespace or environ.get("POD_NAMESPACE") or _service_account_namespace(),
            service_name=service_name
            or environ.get("SERVICE_NAME")
            or _found(stem, "service_name", "SERVICE_NAME, POD_NAME or a host name like game-3"),
            pod_index=_index(pod_index, environ.get("POD_INDEX") or ordinal),
            pod_name=pod_name,
            metadata=dict(metadata or {}),
            pod_uid=environ.get("POD_UID", ""),
        )


def _check(parameter: str, what: str, given: object, allowed: type = str) -> None:
    if not isinstance(given, allowed):
        name = type(given).__name__
        raise InvalidParameterTypeError(
            f"{what} must be a {allowed.__name__}, got {name}",
            details={"parameter": parameter, "given": name, "allowed": allowed.__name__},
        )


def _split(pod_name: str) -> tuple[str | None, str | None]:
    match = re.fullmatch(r"(.+)-(\d+)", pod_name.split(".")[0], re.ASCII)
    return (match[1], match[2]) if match else (None, None)


def _found(value: str | None, what: str, places: str) -> str:
    if value:
        return value
    raise InvalidParameterError(
        f"{what} was not given and was not found in {places}",
        details={"parameter": what, "given": "nothing", "allowed": places},
    )


def _index(given: int | None, text: str | None) -> int:
    if given is not None:
        return given
    text = _found(text, "pod_index", "POD_INDEX, POD_NAME or a host name like game-3")
    if not re.fullmatch(r"\d{1,10}", text, re.ASCII):
        raise InvalidParameterError(
            f"POD_INDEX must be a whole number from 0, got {text[:40]!r}",
            details={"parameter": "POD_INDEX", "given": text[:40], "allowed": "a whole number"},
        )
    return int(text)


def _service_account_namespace() -> str:
    from pathlib import Path  # as slow to load as the drivers, for one file that few pods need

    try:
        text = Path(_NAMESPACE_FILE).read_text("utf-8").strip()
    except OSError:
        text = ""
    return _found(text, "namespace", f"POD_NAMESPACE or {_NAMESPACE_FILE}")
