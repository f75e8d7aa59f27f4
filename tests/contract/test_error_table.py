"""Every error that the core can raise has a class of its own, with the facts attached."""

import copy
import pickle

import pytest

import podlink
from podlink import _podlink, errors

BASES = {
    "CLOSED": (podlink.ClosedError, RuntimeError),
    "FORKED_PROCESS": (podlink.ForkedProcessError, RuntimeError),
    "ILLEGAL_STATE": (podlink.IllegalStateError, RuntimeError),
    "INTERNAL_ERROR": (podlink.InternalError, Exception),
    "INVALID_PARAMETER": (podlink.InvalidParameterError, ValueError),
    "LEASE_LOST": (podlink.LeaseLostError, Exception),
    "NAMESPACE_UNREACHABLE": (podlink.NamespaceUnreachableError, LookupError),
    "NOT_OWNER": (podlink.NotOwnerError, Exception),
    "OUT_OF_RESOURCES": (podlink.OutOfResourcesError, OSError),
    "OVERLOADED": (podlink.OverloadedError, Exception),
    "OWNERSHIP_LOST": (podlink.OwnershipLostError, Exception),
    "PEER_UNAVAILABLE": (podlink.PeerUnavailableError, ConnectionError),
    "PERMISSION_DENIED": (podlink.PermissionDeniedError, PermissionError),
    "POD_INDEX_BUSY": (podlink.PodIndexBusyError, Exception),
    "POD_NOT_AVAILABLE": (podlink.PodNotAvailableError, Exception),
    "POD_NOT_FOUND": (podlink.PodNotFoundError, LookupError),
    "POD_NOT_ROUTABLE": (podlink.NoRoutablePodError, LookupError),
    "REDIS_ERROR": (podlink.StoreError, Exception),
    "SERVICE_NOT_FOUND": (podlink.ServiceNotFoundError, LookupError),
    "STORE_AUTHENTICATION": (podlink.StoreAuthenticationError, PermissionError),
    "STORE_DATA": (podlink.StoreDataError, ValueError),
    "STORE_UNAVAILABLE": (podlink.StoreUnavailableError, ConnectionError),
    "TIMEOUT": (podlink.OperationTimeoutError, TimeoutError),
}

RETRYABLE = {
    "OUT_OF_RESOURCES",
    "OVERLOADED",
    "PEER_UNAVAILABLE",
    "POD_INDEX_BUSY",
    "POD_NOT_AVAILABLE",
    "POD_NOT_ROUTABLE",
    "STORE_UNAVAILABLE",
    "TIMEOUT",
}

CODES = dict(_podlink.error_codes())


def all_classes(root: type[podlink.PodlinkError]) -> list[type[podlink.PodlinkError]]:
    """The root and everything below it."""
    below = [cls for child in root.__subclasses__() for cls in all_classes(child)]
    return [root, *below]


CLASSES = all_classes(podlink.PodlinkError)


def test_the_table_is_complete() -> None:
    assert set(BASES) == set(CODES)
    assert len(CODES) == len(_podlink.error_codes())


@pytest.mark.parametrize("code", CODES)
def test_a_code_has_exactly_one_class(code: str) -> None:
    of_its_own = [
        cls
        for cls in CLASSES
        if cls is not podlink.PodlinkError and vars(cls).get("code", None) == code
    ]
    if code == "INTERNAL_ERROR":
        # It is the root's code too: what has no better name.
        assert of_its_own == []
        of_its_own = [podlink.InternalError]
    assert of_its_own == [BASES[code][0]]
    made = errors.from_core(code, "what happened", CODES[code], {"operation": "x"})
    assert type(made) is BASES[code][0]
    assert made.code == code


@pytest.mark.parametrize("code", CODES)
def test_it_is_also_the_builtin_that_fits(code: str) -> None:
    cls, builtin = BASES[code]
    assert issubclass(cls, podlink.PodlinkError)
    assert issubclass(cls, builtin)


@pytest.mark.parametrize("code", CODES)
def test_the_core_says_what_is_worth_repeating(code: str) -> None:
    assert CODES[code] == (code in RETRYABLE)


def test_a_code_that_nobody_knows_is_an_internal_error() -> None:
    made = errors.from_core("NEWER_THAN_THIS", "text", True, {})
    assert type(made) is podlink.InternalError
    assert made.retryable


def test_a_wrong_type_is_a_type_error_and_a_value_error() -> None:
    made = errors.from_core("INVALID_PARAMETER", "text", False, {"wrong_type": "true"})
    assert type(made) is podlink.InvalidParameterTypeError
    assert isinstance(made, TypeError)
    assert isinstance(made, ValueError)
    assert made.code == "INVALID_PARAMETER"


@pytest.mark.parametrize("way", ["pickle", "copy"])
def test_notes_go_to_another_process(way: str) -> None:
    error = podlink.StoreUnavailableError("no answer", retryable=True, details={"uid": "u1"})
    error.add_note("while the lobby was opened")
    back = pickle.loads(pickle.dumps(error)) if way == "pickle" else copy.copy(error)
    assert back.__notes__ == ["while the lobby was opened"]
    assert (back.retryable, back.details) == (True, {"uid": "u1"})
    assert back.details is not error.details


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("way", ["pickle", "copy"])
def test_nothing_is_lost_on_the_way_to_another_process(
    cls: type[podlink.PodlinkError], way: str
) -> None:
    details = {"operation": "set", "outcome": "unknown", "server_code": "OOM"}
    error = cls("the store said no", retryable=True, details=details)
    back = pickle.loads(pickle.dumps(error)) if way == "pickle" else copy.copy(error)
    assert type(back) is cls
    assert str(back) == "the store said no"
    assert (back.code, back.retryable, back.details) == (error.code, True, details)
    assert back.outcome == "unknown"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_program_can_make_one_for_its_own_tests(cls: type[podlink.PodlinkError]) -> None:
    error = cls("text")
    assert (str(error), error.retryable, error.details, error.outcome) == ("text", False, {}, None)


def test_every_class_is_exported_and_documented_in_the_tree() -> None:
    names = {cls.__name__ for cls in CLASSES}
    assert names == set(errors.__all__)
    assert names <= set(vars(podlink)["__all__"])
    assert errors.__doc__ is not None
    for name in names:
        assert name in errors.__doc__, f"{name} is not drawn in the tree"
