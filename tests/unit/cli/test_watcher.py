"""The times that the demo tells: from a new spec to Ready, whatever comes between."""

import os
import threading
from pathlib import Path

import pytest

from controller.cli.narrator import Narrator
from controller.cli.watcher import Watcher, following
from controller.errors import Timeout
from tests.waiting import until


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


async def test_what_a_workload_writes_is_heard_until_nobody_listens(tmp_path: Path):
    command = tmp_path / "torpor"
    command.write_text('#!/bin/sh\necho "$@"; echo $$; exec sleep 60\n')
    command.chmod(0o755)
    narrator = Narrator(tmp_path, {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    with following(narrator, "counter") as lines:
        await until(lambda: len(lines) == 2, 10)
        assert lines[0] == "logs -f counter\n"
        assert Path(f"/proc/{int(lines[1])}").exists()
    assert not Path(f"/proc/{int(lines[1])}").exists()
