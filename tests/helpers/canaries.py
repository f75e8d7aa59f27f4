"""Secrets of tests. Each begins with `MARK`, so that whatever the suite prints can be searched.

`conftest.py` fails a test whose output, or whose log, holds one.
"""

import base64
from collections.abc import Iterator
from urllib.parse import quote

MARK = "canary-"

PASSWORD = f"{MARK}s3cret/@:# é"
USER_PASSWORD = f"{MARK}user-s3cret"
TOKEN = f"{MARK}token-0123456789"
OTHER_TOKEN = f"{MARK}other-token-0123456789"
KEY = f"{MARK}key-material"

ALL = (PASSWORD, USER_PASSWORD, TOKEN, OTHER_TOKEN, KEY)


def leaks(printed: str) -> list[str]:
    """The secrets that a text shows, as they are, in a URL, or in base64."""
    return [secret for secret in ALL if any(form in printed for form in _forms(secret))]


def _forms(secret: str) -> Iterator[str]:
    yield secret
    yield quote(secret)
    yield quote(secret, safe="")
    # Wherever it begins in what was encoded, these bytes of it look alike.
    for skipped in range(3):
        encoded = base64.b64encode(b"\0" * skipped + secret.encode()).decode()
        yield encoded[4:20]
