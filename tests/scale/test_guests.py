"""Figures of real guests on a cluster of ``torpor up``: coming up, booting, writes, faults."""

import os
import signal
import socket
import time
from pathlib import Path
from statistics import median
from typing import Any

from tests.scale.bare import BareBoot
from tests.scale.figures import Figures
from tests.scale.transitions import SECONDS, exit_of_workload, life
from tests.scale.upped import NAMESPACE, Cluster
from tests.scale.watching import failed, ready

Object = dict[str, Any]
BOOTS = 5
DEATHS = 3
DRIFTS = 5


def test_cluster_comes_up(cluster: Cluster, figures: Figures) -> None:
    said = {line: at for at, line in cluster.lines}
    plane = said["applying manifests"] - said["starting the control plane"]
    figures.add("control plane up", plane, "s", budget=5, note="etcd to scheduler, once built")
    figures.add("torpor up, total", said["up"], "s", note="one Node; operator and agent ready")


def test_first_byte_of_a_workload(cluster: Cluster, figures: Figures, tmp_path: Path) -> None:
    _boot(cluster, "warm", tmp_path)  # the image is on the node from here on
    ours, bare = [], []
    for number in range(BOOTS):
        took, like = _boot(cluster, f"boot-{number}", tmp_path)
        ours.append(took)
        bare.append(like.seconds_to_first_byte(SECONDS))
    figures.add_median("create → first byte of the workload", ours, "s", note="image cached")
    figures.add_median("bare QEMU with the same argv → first byte", bare, "s")
    ratio = median(ours) / median(bare)
    figures.add("create → first byte ÷ bare boot, p50", ratio, "", budget=1.3, note=f"n={BOOTS}")
    quietest = min(ours) / min(bare)
    note = "the quickest of each: what a machine with nothing else to do comes near"
    figures.add("create → first byte ÷ bare boot, quietest", quietest, "", note=note)


def test_writes_of_each_transition(cluster: Cluster, figures: Figures) -> None:
    for counted in life(cluster, "written"):
        assert counted.writes.instances > 0
        counted.note(figures, "QEMU")
    exited = exit_of_workload(
        cluster, "exits", lambda obj: None, env=[{"name": "EXIT_AFTER", "value": "6"}]
    )
    exited.note(figures, "QEMU")
    cluster.delete("exits")


def test_death_of_a_vmm_is_noticed(cluster: Cluster, figures: Figures) -> None:
    samples = []
    for number in range(DEATHS):
        name = f"dies-{number}"
        _run(cluster, name)
        began = time.monotonic()
        os.kill(_pid(cluster, name), signal.SIGKILL)
        samples.append(cluster.watch.wait(name, failed, after=began, seconds=SECONDS) - began)
        cluster.delete(name)
    note = "kill -9 → status seen by a watcher"
    figures.add_median("VMM death noticed", samples, "s", budget=1, note=note)


def test_drift_is_corrected(cluster: Cluster, figures: Figures) -> None:
    uid = _run(cluster, "drifts")["metadata"]["uid"]
    run_dir = next(cluster.run_dir.glob(f"{uid[:8]}.*"))
    with socket.socket(socket.AF_UNIX) as people:
        people.settimeout(SECONDS)
        people.connect(str(run_dir / "people.sock"))
        heard = people.makefile("rb")
        people.sendall(b'{"execute":"qmp_capabilities"}\n')
        samples = []
        for _ in range(DRIFTS):
            cluster.audit.settled(NAMESPACE)  # the pass before is over: else this is a fight
            began = time.monotonic()
            people.sendall(b'{"execute":"stop"}\n')
            _ = next(line for line in heard if b'"STOP"' in line)
            _ = next(line for line in heard if b'"RESUME"' in line)
            samples.append(time.monotonic() - began)
    figures.add_median(
        "drift corrected", samples, "s", budget=1, note="QMP stop behind our back → resumed"
    )
    cluster.delete("drifts")


def _boot(cluster: Cluster, name: str, tmp_path: Path) -> tuple[float, BareBoot]:
    """Boot an Instance and delete it; the time to its first byte, and how to do it without us."""
    began = time.monotonic()
    obj = cluster.create(name)
    place = cluster.place(obj)
    log = place / "log" / "workload.log"
    while not (log.exists() and log.stat().st_size):
        assert time.monotonic() - began < SECONDS, cluster.get(name)
        time.sleep(0.02)  # seldom: who looks takes CPU from what is measured
    took = time.monotonic() - began
    cluster.watch.wait(name, ready("Running"), after=began, seconds=SECONDS)
    home = tmp_path / name
    home.mkdir()
    like = BareBoot.like(_pid(cluster, name), place, home)
    cluster.delete(name)
    return took, like


def _run(cluster: Cluster, name: str) -> Object:
    began = time.monotonic()
    obj = cluster.create(name)
    cluster.watch.wait(name, ready("Running"), after=began, seconds=SECONDS)
    return obj


def _pid(cluster: Cluster, name: str) -> int:
    return int(cluster.get(name)["status"]["hypervisor"]["pid"])
