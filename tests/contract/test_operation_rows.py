"""The typed rows of `_operations.py` and the core's operations are the same, name by name."""

from podlink import _operations, _podlink

# Answered at once, without a future; and what the admin endpoint asks itself.
WITHOUT_A_ROW = {"get_linked_in_cache", "ready"}


def test_rows_are_the_cores_operations() -> None:
    rows = {
        row.name for row in vars(_operations).values() if isinstance(row, _operations.Operation)
    }
    assert rows == set(_podlink.operation_names()) - WITHOUT_A_ROW
