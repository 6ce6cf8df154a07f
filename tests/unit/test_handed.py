"""An update is handed in again where the daemon is another, and its round is still open."""

from __future__ import annotations

from daemon.handed import Handed

ONE, OTHER = object(), object()


def test_nothing_was_handed_in() -> None:
    assert Handed[str]().again(0, ONE) is None


def test_the_same_daemon_has_it() -> None:
    handed = Handed[str]()
    handed.note(3, "update", ONE)
    assert handed.again(3, ONE) is None
    assert handed.again(3, OTHER) == "update", "it was kept"


def test_another_daemon_is_given_it_once() -> None:
    handed = Handed[str]()
    handed.note(3, "update", ONE)
    assert handed.again(3, OTHER) == "update"
    assert handed.again(3, OTHER) is None
    handed.note(3, "update", OTHER)
    assert handed.again(3, OTHER) is None
    assert handed.again(3, ONE) == "update"


def test_an_update_whose_round_is_over_counts_once() -> None:
    handed = Handed[str]()
    handed.note(3, "update", ONE)
    assert handed.again(4, OTHER) is None


def test_the_last_update_is_the_one() -> None:
    handed = Handed[str]()
    handed.note(3, "update", ONE)
    handed.note(3, "newer", ONE)
    assert handed.again(3, OTHER) == "newer"
