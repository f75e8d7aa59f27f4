"""The rows of `_operations.py`, the core's operations and the arms that start them agree."""

import inspect
from typing import Any, cast, get_overloads

import pytest

import podlink
from podlink import _operations, _podlink

# Answered at once, without a future; and what the admin endpoint asks itself.
WITHOUT_A_ROW = {"get_linked_in_cache", "ready"}
# Ending a driver is not submitted, and a store, which is asked with `ping`, has no `submit`.
NOT_SUBMITTED = {"aclose", "ping"}
# Methods of what `claim` returns.
OF_AN_OWNERSHIP = {"release", "verify"}


def drivers() -> list[Any]:
    store = podlink.Store()
    return [
        podlink.ClientDriver(store),
        podlink.RouteInfoDriver(store),
        podlink.RouteGrpcClient("grpc://localhost:1"),
        podlink.ServerDriver(store, podlink.ServerInfo("default", "svc", 0)),
    ]


def rows() -> set[str]:
    return {
        row.name for row in vars(_operations).values() if isinstance(row, _operations.Operation)
    }


def test_rows_are_the_cores_operations() -> None:
    assert rows() == set(_podlink.operation_names()) - WITHOUT_A_ROW


def test_every_row_is_a_method_of_some_driver() -> None:
    submitted = {
        row.operation.name
        for driver in drivers()
        for row in driver._submitter._operations.values()
        if row.operation is not None
    }
    assert rows() - submitted == NOT_SUBMITTED | OF_AN_OWNERSHIP
    assert all(inspect.iscoroutinefunction(getattr(podlink.Ownership, n)) for n in OF_AN_OWNERSHIP)


def test_every_operation_of_a_user_is_counted_as_one_on_links() -> None:
    of_users = {
        row.name
        for row in vars(_operations).values()
        if isinstance(row, _operations.Operation) and {"uid", "uids"} & {*row.parameters}
    }
    # It changes nothing, so it counts nothing.
    assert of_users - {"explain"} == set(_podlink.link_operation_names()) - WITHOUT_A_ROW


@pytest.mark.parametrize("at", range(4))
def test_every_operation_has_an_overload_of_submit(at: int) -> None:
    driver = drivers()[at]
    types = [overload.__annotations__["operation"] for overload in get_overloads(driver.submit)]
    for name in driver._submitter._operations:
        assert any(f'"{name}"' in str(each).replace("'", '"') for each in types), name


class Waiter:
    def done(self) -> bool:
        return True


@pytest.mark.parametrize("at", range(4))
def test_every_core_starts_the_operations_of_its_driver(at: int) -> None:
    driver = drivers()[at]
    queue = _podlink.CompletionQueue()
    refused: dict[str, str] = {}
    for name, row in driver._submitter._operations.items():
        if row.operation is None:
            continue
        # Arguments that each operation refuses: what is tested is that the core has an arm.
        wrong = (object(),) * len(row.operation.parameters)
        try:
            driver._core.start(queue, cast(Any, Waiter()), name, wrong, None)
        except podlink.PodlinkError as error:
            refused[name] = error.code
    assert "INTERNAL_ERROR" not in refused.values(), refused


def test_the_servers_core_starts_those_of_an_ownership() -> None:
    driver = drivers()[3]
    for name in sorted(OF_AN_OWNERSHIP):
        row = getattr(_operations, name)
        wrong = (object(),) * len(row.parameters)
        queue = _podlink.CompletionQueue()
        with pytest.raises(podlink.InvalidParameterTypeError):
            driver._core.start(queue, cast(Any, Waiter()), name, wrong, None)
