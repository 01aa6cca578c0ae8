"""Figures of sleep, wake and fork of real guests, beside what a small script does without us.

Both do it with the same QEMU, argv and files, in turns, so that what else the machine does hits
both. The script checks, confines, notes and reserves nothing; its wake ends with the first answer
of the guest, ours with a Ready that somebody else reads from the API server.
"""

import re
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytest

from tests.scale import virsh
from tests.scale.baresleep import PAGE, Written, copy_out, own_pages, snapshot_of
from tests.scale.figures import SMOKE, Figures
from tests.scale.subject import MIB, SECONDS, Save, Subject
from tests.scale.transitions import slumber
from tests.scale.upped import NAMESPACE, Cluster
from tests.scale.watching import gone, ready

Object = dict[str, Any]
GIB = 1 << 30
WAKES = {128: 2} if SMOKE else {128: 10, 512: 30, 2048: 5, 4096: 10}  # by MiB of RAM
LATER = 3  # Standbys after the first, of each size
FORKS = {1: 1, 3: 1} if SMOKE else {1: 3, 4: 2, 16: 2}  # how often, by how many at once
FORK_MIB = 512
VIRSH_MIB = (128,) if SMOKE else (512, 2048)
VIRSH_ROUNDS = 3
AWAKE_SECONDS = 0.5  # between a wake and the next Standby
IDLE_SECONDS = 2.0  # after Ready; then the pages of a fork are counted

# A budget is what the script takes times this, plus that (seconds).
WAKE_TIMES, WAKE_PLUS = 1.25, 0.15
SAVE_TIMES, SAVE_PLUS = 1.3, 0.1
PAUSE_PLUS, PAUSE_PER_GIB = 0.05, 0.7  # of a source that is forked while it runs
FORK_TIMES = 1.5


class Found(NamedTuple):
    """Seconds of one size, to be compared by others."""

    first: float  # Standby
    later: float
    wake: float


@pytest.fixture(scope="module")
def found() -> dict[int, Found]:
    """By MiB of RAM, as far as it was measured."""
    return {}


@pytest.mark.parametrize("mib", WAKES)
def test_sleep_and_wake(
    cluster: Cluster, figures: Figures, tmp_path: Path, found: dict[int, Found], mib: int
) -> None:
    subject = Subject.filled(cluster, mib)
    argv = subject.argv  # but for its memory, what every later VMM of it has too
    first = _first_standby(figures, subject, tmp_path / "copy")
    ours, bare = [], []
    for number in range(WAKES[mib]):
        if number:
            subject.order("Standby")
        bare.append(subject.bare(argv, tmp_path / f"wake-{number}").seconds())
        ours.append(subject.order("Running"))
        time.sleep(AWAKE_SECONDS)
    _note_wakes(figures, mib, ours, bare)
    later = _later_standbys(figures, subject, tmp_path / "copy")
    found[mib] = Found(first, later, median(ours))
    cluster.delete(subject.name)


def test_wake_is_flat_in_memory(figures: Figures, found: dict[int, Found]) -> None:
    least, most = min(found), max(found)
    what = f"wake, {most} MiB ÷ {least} MiB of RAM, p50"
    ratio = found[most].wake / found[least].wake
    figures.add(what, ratio, "", budget=1.3, note="patch → Ready")


def test_forks(cluster: Cluster, figures: Figures, tmp_path: Path) -> None:
    subject = Subject.filled(cluster, FORK_MIB, "source")
    argv = subject.argv
    subject.order("Standby")
    bare = subject.bare(argv, tmp_path / "bare")
    for count, rounds in FORKS.items():
        ours, plain = [], []
        for number in range(rounds):
            plain.append(bare.seconds(count))
            names = [f"fork-{count}-{number}-{each}" for each in range(count)]
            ours.append(_fork(cluster, subject.name, names))
            if count == 1 and number == 0:
                _note_idle_fork(cluster, figures, names[0])
            _delete(cluster, names)
        _note_forks(figures, count, ours, plain)
    cluster.delete(subject.name)


def test_fork_of_a_running_source(cluster: Cluster, figures: Figures) -> None:
    subject = Subject.filled(cluster, FORK_MIB, "lively")
    size = own_pages(subject.pid, subject.mapped, subject.ram) * PAGE
    began = time.monotonic()
    cluster.fork(subject.name, "of-lively", fromRunning=True)
    cluster.watch.wait("of-lively", ready("Running"), after=began, seconds=SECONDS)
    total = time.monotonic() - began
    said = _event(cluster, "of-lively", "Forked")
    stood = re.search(r"stood still for ([\d.]+) s", said)
    copied = re.search(r"copied in ([\d.]+) s", said)
    assert stood, said
    disk = float(copied[1]) if copied else 0.0
    pause = float(stood[1]) - disk
    figures.add(
        f"pause of a running source, {subject.ram // MIB} MiB", pause, "s",
        budget=round(PAUSE_PLUS + PAUSE_PER_GIB * size / GIB, 4),
        note=f"{size / GIB:.2f} GiB of its own; + {disk:.2f} s for its disk; Ready: {total:.2f} s",
    )  # fmt: skip
    _delete(cluster, ["of-lively", subject.name])


def test_writes_of_sleep_wake_and_fork(cluster: Cluster, figures: Figures) -> None:
    began = time.monotonic()
    cluster.create("slumbers")
    cluster.watch.wait("slumbers", ready("Running"), after=began, seconds=SECONDS)
    cluster.audit.settled(NAMESPACE)
    for counted in slumber(cluster, "slumbers"):
        assert counted.writes.instances > 0
        counted.note(figures, "QEMU")
    cluster.delete("slumbers")


@pytest.mark.parametrize("mib", VIRSH_MIB)
def test_beside_libvirt(
    cluster: Cluster, figures: Figures, found: dict[int, Found], mib: int
) -> None:
    if why := virsh.missing():
        figures.remarks.append(f"virsh, {mib} MiB: not measured: {why}")
        return
    subject = Subject.filled(cluster, mib, f"like-{mib}")
    saves, starts = [], []
    with virsh.like(subject) as domain:
        subject.order("Stopped")
        domain.first_start()
        for _ in range(VIRSH_ROUNDS):
            time.sleep(AWAKE_SECONDS)
            saves.append(domain.save())
            size = domain.saved_bytes
            starts.append(domain.start())
    cluster.delete(subject.name)
    ours = found[mib]
    figures.add_median(f"virsh managedsave, {mib} MiB", saves, "s", note=f"{size / MIB:.0f} MiB")
    figures.add_median(f"virsh start → first answer, {mib} MiB", starts, "s")
    for what, mine, theirs, budget in (
        ("first Standby ÷ virsh managedsave", ours.first, saves, 1.0),
        ("later Standby ÷ virsh managedsave", ours.later, saves, 0.1),
        ("wake ÷ virsh start", ours.wake, starts, 0.3333),
    ):
        note = f"ours from patch to Ready; n={VIRSH_ROUNDS}"
        ratio = mine / median(theirs)
        figures.add(f"{what}, {mib} MiB", ratio, "", budget=budget, note=note)


def _first_standby(figures: Figures, subject: Subject, copy: Path) -> float:
    bare = _copied(subject, copy)
    subject.order("Running")
    save = subject.sleep()
    base = subject.snapshot.base
    assert subject.snapshot.delta is None
    size = subject.ram // MIB
    figures.add(f"first Standby, {size} MiB, patch → Ready", save.total, "s", note=_parts(save))
    _note_written(figures, f"first Standby, {size} MiB", base.on_disk, bare)
    figures.add(
        f"first Standby ÷ plain copy and sync, {size} MiB", save.total / bare.seconds, "",
        note=f"{bare.seconds:.3f} s for the script",
    )  # fmt: skip
    return save.total


def _later_standbys(figures: Figures, subject: Subject, copy: Path) -> float:
    saves, bare, sizes = [], [], []
    for _ in range(LATER):
        bare.append(_copied(subject, copy))
        subject.order("Running")
        time.sleep(AWAKE_SECONDS)
        saves.append(subject.sleep())
        delta = subject.snapshot.delta
        assert delta is not None
        sizes.append(delta.on_disk)
        subject.order("Running")
    save = sorted(saves, key=lambda each: each.total)[LATER // 2]
    plain = sorted(bare, key=lambda each: each.seconds)[LATER // 2]
    size = subject.ram // MIB
    figures.add(
        f"later Standby, {size} MiB, patch → Ready", save.total, "s",
        budget=round(SAVE_TIMES * plain.seconds + SAVE_PLUS, 4), note=_parts(save),
        samples=[each.total for each in saves],
    )  # fmt: skip
    figures.add(
        f"pause and device state, {size} MiB", median(s.pause + s.state for s in saves) * 1000,
        "ms", budget=50, samples=[(s.pause + s.state) * 1000 for s in saves],
    )  # fmt: skip
    _note_written(figures, f"later Standby, {size} MiB", round(median(sizes)), plain)
    return save.total


def _copied(subject: Subject, copy: Path) -> Written:
    """What it takes to write down its changed pages, while it is Paused."""
    subject.order("Paused")
    written = copy_out(subject.pid, subject.mapped, subject.ram, copy)
    copy.unlink()
    return written


def _parts(save: Save) -> str:
    parts = (("pause", save.pause), ("state", save.state), ("pages", save.pages))
    said = ", ".join(f"{name} {seconds * 1000:.0f}" for name, seconds in parts)
    return f"{said}, durable {save.durable * 1000:.0f} ms"


def _note_written(figures: Figures, what: str, size: int, bare: Written) -> None:
    note = f"{bare.size / MIB:.1f} MiB for the script in {bare.seconds:.3f} s"
    figures.add(f"{what}, written", size / MIB, "MiB", note=note)


def _note_wakes(figures: Figures, mib: int, ours: list[float], bare: list[float]) -> None:
    for name, pick in (("p50", median), ("p95", _p95)):
        mine, plain = pick(ours), pick(bare)
        figures.add(
            f"wake, {mib} MiB, patch → Ready, {name}", mine, "s",
            budget=round(WAKE_TIMES * plain + WAKE_PLUS, 4),
            note=f"bare {plain:.3f} s; {(mine - plain) * 1000:.0f} ms more,"
            f" {mine / plain:.2f} times; n={len(ours)}",
            samples=ours if name == "p50" else bare,
        )  # fmt: skip


def _p95(samples: list[float]) -> float:
    return sorted(samples)[max(0, round(0.95 * len(samples)) - 1)]


def _fork(cluster: Cluster, source: str, names: list[str]) -> float:
    """Seconds until all of them are Ready."""
    began = time.monotonic()
    for name in names:
        cluster.fork(source, name)
    return max(
        cluster.watch.wait(name, ready("Running"), after=began, seconds=SECONDS) for name in names
    ) - began  # fmt: skip


def _note_forks(figures: Figures, count: int, ours: list[float], bare: list[float]) -> None:
    ratio = median(ours) / median(bare)
    figures.add(
        f"fork of {count} from a Standby ÷ bare wakes", ratio, "",
        budget=FORK_TIMES if count > 1 else None,
        note=f"{median(ours):.2f} s ÷ {median(bare):.2f} s, {FORK_MIB} MiB; n={len(ours)}",
        samples=ours,
    )  # fmt: skip


def _note_idle_fork(cluster: Cluster, figures: Figures, name: str) -> None:
    time.sleep(IDLE_SECONDS)
    fork = Subject(cluster, name, FORK_MIB * MIB)
    pages = own_pages(fork.pid, fork.mapped, fork.ram)
    note = f"{IDLE_SECONDS:g} s after Ready; {pages} pages"
    what = f"an idle fork's own guest pages, {FORK_MIB} MiB"
    figures.add(what, pages * PAGE / MIB, "MiB", budget=5, note=note)
    fork.order("Standby")
    delta = snapshot_of(fork.place).delta
    assert delta is not None
    overlay = (fork.place / "disk" / "overlay.raw").stat().st_blocks * 512
    note = f"delta {delta.on_disk / MIB:.2f}, overlay {overlay / MIB:.2f} MiB"
    what = f"disk of a sleeping fork, {FORK_MIB} MiB"
    figures.add(what, (delta.on_disk + overlay) / MIB, "MiB", budget=8, note=note)


def _event(cluster: Cluster, name: str, reason: str) -> str:
    """What the newest Event of this reason says."""
    deadline = time.monotonic() + SECONDS
    path = f"/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events"
    while time.monotonic() < deadline:
        for event in cluster.admin.get(path)["items"]:
            if (event["regarding"]["name"], event["reason"]) == (name, reason):
                return str(event["note"])
        time.sleep(0.1)
    raise AssertionError(f"no Event {reason} for {name}")


def _delete(cluster: Cluster, names: list[str]) -> None:
    began = time.monotonic()
    for name in names:
        cluster.admin.delete(f"{cluster.instances}/{name}")
    for name in names:
        cluster.watch.wait(name, gone, after=began, seconds=SECONDS)
