"""The judge of the ownership checker finds what it is there for."""

import pytest

from helpers.ownership_judge import UNINTERRUPTED, Load, Save, judge

# Pod 1 claimed before pod 2; each may save once, at the moment that a test gives.
FIRST = Load("u", 1, "0.0", 10.0, 0, allowed=True)
SECOND = Load("u", 2, "1.0", 20.0, 0, allowed=True)


def save(token: int, checked: float, base: int, *, version: int = 0, allowed: bool = True) -> Save:
    holder = FIRST.holder if token == FIRST.token else SECOND.holder
    return Save("u", token, holder, checked, base, base + 1, None, version, allowed)


def next_save(took: float) -> Save:
    """The first pod's next save, which says how long its first one took."""
    return save(1, 11.0, 0, allowed=False)._replace(previous_took=took)


def test_a_fenced_history_is_clean() -> None:
    verdict = judge([FIRST, save(1, 11, 0), SECOND, save(2, 21, 1, version=1)])
    assert verdict.saves == {"u": 2}
    assert not verdict.corrupt + verdict.late + verdict.believers


def test_a_save_over_another_is_corrupt() -> None:
    verdict = judge([FIRST, SECOND, save(2, 21, 0), save(1, 11, 0, version=1)])
    assert len(verdict.corrupt) == 1
    assert not verdict.believers


@pytest.mark.parametrize(("took", "found"), [(UNINTERRUPTED / 2, 1), (UNINTERRUPTED * 2, 0)])
def test_a_late_save_may_have_been_interrupted(took: float, found: int) -> None:
    verdict = judge([FIRST, SECOND, save(1, 19, 0, allowed=False), next_save(took)])
    assert len(verdict.late_at_once) == found
    assert not verdict.corrupt + verdict.believers


def test_a_check_after_a_newer_claim_is_wrong() -> None:
    verdict = judge([FIRST, SECOND, save(1, 20, 0, allowed=False)])
    assert len(verdict.believers) == 1
    assert "token=2" in verdict.believers[0]


def test_a_check_before_a_newer_claim_is_right() -> None:
    verdict = judge([FIRST, SECOND, save(1, 19.9, 0, allowed=False)])
    assert (len(verdict.believers), len(verdict.late)) == (0, 1)
