"""Which picture shows what, and how it says which data it was drawn from."""

import hashlib
import struct
from pathlib import Path

PICTURES = {
    "cached": "cached",
    "misses": "misses",
    "cpu": "misses",
    "latency": "latency",
    "memory": "memory",
    "pods": "pods",
    "drivers": "drivers",
    "grpc": "grpc_calls",
}
"""Picture to subject."""

SOURCE = "Source"
"""Under which word a picture keeps the hash of its data."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def source_of(place: Path, subject: str) -> str:
    """The hash of a subject's data."""
    data = (place / f"{subject}.json").read_bytes()
    return f"{subject}.json sha256 {hashlib.sha256(data).hexdigest()}"


def said_by(picture: Path) -> str | None:
    """The hash that a picture carries."""
    data = picture.read_bytes()
    if not data.startswith(_SIGNATURE):
        raise ValueError(f"{picture.name} is no PNG")
    at = len(_SIGNATURE)
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        word, _, text = content.partition(b"\0")
        if kind == b"tEXt" and word.decode("latin-1") == SOURCE:
            return text.decode("latin-1")
        at += 12 + length
    return None
