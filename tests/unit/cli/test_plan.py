"""``torpor plan``: manifests and looks in, the planner's own words out."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from controller.cli import plan as command
from controller.cli import seen as forms
from controller.core.desired import Desired, Hardware, Mode
from controller.core.observed import (
    ABSENT,
    ImageFailed,
    ImagePulling,
    Lock,
    Observed,
    Snapshot,
    Unknown,
)
from controller.errors import Rejected

MANIFEST: dict[str, Any] = {
    "apiVersion": "torpor.dev/v1alpha1",
    "kind": "Instance",
    "metadata": {"name": "web"},
    "spec": {"image": "app:1"},
}
LIVE_META = {"name": "web", "namespace": "team", "uid": "u", "generation": 3}
READY_TO_BOOT = {
    "record": {},
    "overlay": True,
    "kernel": "6.1",
    "image": {"ready": {"digest": "sha256:1"}},
}
DESIRED = Desired(
    "u", "team", "web", 1, Mode.RUNNING, epoch=4, image="app:1", hardware=Hardware("qemu", 3, 5, 7)
)


def run(tmp_path: Path, *args: str, seen: Any = None, **changes: Any) -> Result:
    manifest = tmp_path / "instance.yaml"
    manifest.write_text(yaml.safe_dump({**MANIFEST, **changes}))
    argv = ["-f", str(manifest), *args]
    if seen is not None:
        (tmp_path / "seen.json").write_text(json.dumps(seen))
        argv += ["--seen", str(tmp_path / "seen.json")]
    return CliRunner().invoke(command.plan, argv, standalone_mode=False)


def planned(tmp_path: Path, **given: Any) -> dict[str, Any]:
    done = run(tmp_path, "-o", "json", **given)
    assert done.exception is None, done.exception
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def names(answer: dict[str, Any]) -> list[str]:
    return [step["name"] for step in answer["steps"]]


def test_a_manifest_alone_is_provisioned(tmp_path):
    answer = planned(tmp_path)
    assert (answer["from"], answer["to"]) == ("Absent", "Running")
    assert names(answer) == ["CreateRecord", "CreateOverlay", "FinishProvision"]


def test_a_fork_is_taken_from_a_source_that_sleeps_unless_something_else_is_seen(tmp_path):
    spec = {"forkFrom": {"name": "warm"}}
    alone = planned(tmp_path, spec=spec)
    assert alone["way"] == ["Absent", "Standby"]
    assert names(alone) == ["CreateRecord", "TakeFork"]
    source = {"name": "warm", "state": "Running", "started": True}
    refused = planned(tmp_path, spec=spec, seen={"source": source})
    assert refused["waiting"]["reason"] == "SourceRunning"


def test_what_is_there_is_booted(tmp_path):
    answer = planned(tmp_path, seen=READY_TO_BOOT)
    assert answer["way"] == ["Stopped", "Created", "Running"]
    assert names(answer)[-3:] == ["StartVmm", "OrderBoot", "ResumeVmm"]


def test_the_example_is_settled_until_something_else_is_asked(tmp_path):
    example = json.loads(
        CliRunner().invoke(command.plan, ["--example-seen"], standalone_mode=False).stdout
    )
    assert planned(tmp_path, seen=example)["settled"] is True
    stopped = planned(tmp_path, seen=example, spec={"image": "a:1", "operatingMode": "Stopped"})
    assert stopped["way"] == ["Running", "Shutdown", "Stopped"]
    assert stopped["steps"][-1] == {"name": "ShutDownGuest", "grace": 5}


def test_a_live_object_counts_as_it_is(tmp_path):
    fresh = planned(tmp_path, metadata=LIVE_META)
    assert fresh["waiting"]["message"] == "waiting for the operator to place the Instance"
    going = LIVE_META | {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    assert planned(tmp_path, metadata=going)["to"] == "Absent"


def test_unknown_waits_and_destroys_nothing(tmp_path):
    answer = planned(tmp_path, seen={"record": {"unknown": "disk error", "stalled": True}})
    assert answer["steps"] == []
    assert answer["waiting"] == {"reason": "Unknown", "message": "disk error", "stalled": True}


def test_a_person_reads_way_steps_and_reason(tmp_path):
    text = run(tmp_path, seen=READY_TO_BOOT).stdout
    assert text.startswith("default/web\n  from     Stopped\n  to       Running\n")
    assert "way      Stopped → Created → Running" in text
    assert "because  operatingMode is Running" in text
    assert "  steps    1. PinImage    Write the digest" in text


def test_a_person_reads_what_is_waited_for(tmp_path):
    waits = {**READY_TO_BOOT, "now": 50, "record": {"retryAt": 57.5, "restarts": 1}}
    text = run(tmp_path, seen=waits).stdout
    assert "waiting  CrashLoopBackOff: " in text
    assert "looks    again in 7.5 s at the latest" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "Pod"}, "has 0 Instances"),
        ({"metadata": {}}, "metadata.name is missing"),
        ({"spec": {"image": 7}}, "spec.image"),
        ({"spec": {"image": "a:1", "operatingMode": "Asleep"}}, "operatingMode"),
        ({"spec": {"image": "a:1", "memory": {"size": "lots"}}}, "lots"),
    ],
)
def test_a_wrong_manifest_is_refused_by_its_field(tmp_path, changes, said):
    error = run(tmp_path, **changes).exception
    assert isinstance(error, Rejected)
    assert said in str(error)


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ([], "an object is expected"),
        ({"vm": {}}, "seen has no 'vm'; it has: "),
        ({"record": {"exot": 1}}, "record has no 'exot'"),
        ({"record": {"hardware": {"cpus": 1}}}, "record has no 'cpus'"),
        ({"record": {"retryAt": "soon"}}, "record.retryAt"),
        ({"record": {"epoch": None}}, "record.epoch"),
        ({"lock": "Open"}, "lock"),
        ({"vmm": {"state": "Running"}}, "vmm"),
        ({"vmm": "gone"}, "vmm: an object is expected"),
        ({"image": {"digest": "x"}}, "image: give one of"),
        ({"overlay": "maybe"}, "overlay"),
        ({"now": "today"}, "now"),
    ],
)
def test_a_wrong_look_is_refused_by_its_key(seen, said):
    with pytest.raises(Rejected, match="seen") as caught:
        forms.parse(seen, DESIRED)
    assert said in str(caught.value)


def test_no_json_says_how_to_get_some(tmp_path):
    (tmp_path / "seen.json").write_text("{")
    (tmp_path / "i.yaml").write_text(yaml.safe_dump(MANIFEST))
    argv = ["-f", str(tmp_path / "i.yaml"), "--seen", str(tmp_path / "seen.json")]
    error = CliRunner().invoke(command.plan, argv, standalone_mode=False).exception
    assert "--example-seen" in str(error)


def test_what_a_record_leaves_out_is_what_was_asked():
    seen, now = forms.parse({"record": {"run": 2}}, DESIRED)
    assert now == 0
    assert (seen.record.epoch, seen.record.run, seen.record.hardware) == (4, 2, DESIRED.hardware)
    assert seen.record.provisioned
    assert not seen.record.run_open


LOOKS = [
    Observed(ABSENT, Lock.FREE, ABSENT, ABSENT, ABSENT, ABSENT, overlay=False),
    Observed(
        Unknown("why", "RecordCorrupt", stalled=True), Lock.UNKNOWN, Unknown("a"), Unknown("b"),
        Unknown("c"), Unknown("d"), Unknown("e"), Unknown("f"),
    ),
    Observed(
        ABSENT, Lock.FREE, ABSENT, ABSENT, ImageFailed("ImageDenied", "no", True, 9.5), "6.1", True
    ),
    Observed(
        ABSENT, Lock.FREE, ABSENT, ABSENT, ImagePulling("40 %"), "6.1", True,
        snapshot=Snapshot("2026-01-01T00:00:00Z", 4096, 512, 90, "qemu 10.0.2"), stopping=True,
    ),
]  # fmt: skip


@pytest.mark.parametrize("look", LOOKS)
def test_what_is_written_is_read_back(look):
    assert forms.parse(json.loads(json.dumps(forms.to_json(look, 3.5))), DESIRED) == (look, 3.5)


def test_the_example_has_every_key_and_is_read_back():
    example = forms.example()
    seen, now = forms.parse(json.loads(json.dumps(example)), DESIRED)
    assert forms.to_json(seen, now) == example
    assert all(isinstance(example[key], dict) for key in ("record", "vmm", "guest", "image"))
