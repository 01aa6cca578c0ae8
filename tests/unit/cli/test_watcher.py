"""The times that the demo tells: from a new spec to Ready, whatever comes between."""

import threading

import pytest

from controller.cli.watcher import Watcher
from controller.errors import Timeout


def watcher(*seen: tuple[float, str]) -> Watcher:
    made = Watcher()
    for now, line in seen:
        made.see(f"{line}\n", now)
    return made


def test_a_change_lasts_from_the_new_generation_to_ready_for_it():
    made = watcher(
        (1.0, "a|1||"),
        (2.0, "a|1|1|False"),
        (3.0, "b|1|1|True"),
        (4.5, "a|1|1|True"),
        (9.0, "a|1|1|True"),
    )
    assert made.seconds("a", 0) == 3.5


def test_ready_for_an_older_spec_does_not_count():
    made = watcher((1.0, "a|1|1|True"), (2.0, "a|2|1|True"))
    made.seconds("a", 0)
    with pytest.raises(Timeout, match="no watcher saw a Ready within 0 s"):
        made.seconds("a", 0)
    made.see("a|2|2|True\n", 2.25)
    assert made.seconds("a", 0) == 0.25


def test_a_change_that_the_watch_has_yet_to_show_is_waited_for():
    made = watcher((1.0, "a|1|1|True"))
    made.seconds("a", 0)

    def go_on() -> None:
        made.see("a|2|1|True\n", 5.0)
        made.see("a|2|2|True\n", 5.5)

    later = threading.Timer(0.05, go_on)
    later.start()
    assert made.seconds("a", 10) == 0.5
    later.join()
