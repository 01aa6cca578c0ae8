"""What doctor says about hosts of all kinds, each host a value."""

from dataclasses import replace
from pathlib import Path

import pytest

from controller.errors import Blocked
from controller.host.facts import HostFacts
from controller.host.kvm import Verdict
from controller.local.setup import host_checks, needs, part_checks
from controller.local.setup.findings import Check, Level, look_at_all, ok
from controller.settings import GIB

FINE = HostFacts(
    architecture="x86_64",
    kernel="6.1.0-56-amd64",
    boot_id="b",
    cpus=2,
    threads_per_core=1,
    memory=24 * GIB,
    swap=0,
    seccomp=True,
    tun=True,
    cgroup_writable=True,
    cgroup_limits="full",
)


@pytest.mark.parametrize("look", ["kernel", "memory", "seccomp", "cgroup", "tun"])
def test_a_good_host_is_ok_everywhere(look):
    assert getattr(host_checks, look)(FINE).level is Level.OK


@pytest.mark.parametrize(
    ("look", "change", "level"),
    [
        ("kernel", {"kernel": "5.5.1"}, Level.ERROR),
        ("kernel", {"kernel": "strange"}, Level.ERROR),
        ("kernel", {"kernel": "5.10.0-8"}, Level.WARNING),
        ("kernel", {"kernel": "5.14.0"}, Level.OK),
        ("memory", {"memory": GIB}, Level.WARNING),
        ("memory", {"swap": 1}, Level.WARNING),
        ("seccomp", {"seccomp": False}, Level.ERROR),
        ("cgroup", {"cgroup_writable": False, "cgroup_limits": "none"}, Level.WARNING),
        ("cgroup", {"cgroup_limits": "partial"}, Level.WARNING),
        ("tun", {"tun": False}, Level.WARNING),
    ],
)
def test_what_a_host_lacks_is_an_error_only_where_guests_cannot_run(look, change, level):
    assert getattr(host_checks, look)(replace(FINE, **change)).level is level


@pytest.mark.parametrize(
    ("version", "level"), [((3, 10, 9), Level.ERROR), ((3, 11, 0), Level.OK), ((4, 0), Level.OK)]
)
def test_python_has_a_floor(version, level):
    assert host_checks.python(version).level is level


def test_a_node_agent_needs_root():
    assert host_checks.privileges(0).level is Level.OK
    assert host_checks.privileges(1000).level is Level.ERROR


@pytest.mark.parametrize(
    ("free", "level"), [(GIB, Level.ERROR), (3 * GIB, Level.WARNING), (10 * GIB, Level.OK)]
)
def test_a_full_disk_is_an_error_before_it_is_full(free, level):
    assert host_checks.disk(Path("/x"), free).level is level


def test_a_file_system_without_reflink_is_a_warning():
    assert host_checks.reflink(Path("/x"), True).level is Level.OK
    assert host_checks.reflink(Path("/x"), False).level is Level.WARNING


def test_a_state_directory_that_is_not_there_yet_is_judged_by_the_one_above(tmp_path):
    assert host_checks.existing(tmp_path / "a" / "b") == tmp_path


@pytest.mark.parametrize(
    ("verdict", "level", "said"),
    [
        (None, Level.WARNING, "not tried"),
        (Verdict(True, "a guest booted under KVM"), Level.OK, "booted"),
        (Verdict(False, "a guest was not done after 20 s"), Level.WARNING, "not done after 20 s"),
    ],
)
def test_kvm_is_what_a_boot_says_and_never_an_error(verdict, level, said):
    finding = part_checks.kvm(verdict)
    assert finding.level is level
    assert said in finding.said


@pytest.mark.parametrize(
    ("version", "level", "said"),
    [
        (None, Level.ERROR, "no working"),
        ((7, 2), Level.ERROR, "older than 8.2"),
        ((8, 2), Level.OK, "8.2"),
        ((10, 0), Level.OK, "10.0"),
    ],
)
def test_qemu_has_a_floor(version, level, said):
    finding = part_checks.qemu(lambda name: version)
    assert finding.level is level
    assert said in finding.said


@pytest.mark.parametrize(
    ("package", "met", "level"),
    [("skopeo", True, Level.OK), ("skopeo", False, Level.ERROR), ("strace", False, Level.WARNING)],
)
def test_a_missing_tool_is_an_error_only_where_guests_need_it(package, met, level):
    finding = part_checks.tool(needs.Need(package, "do things", lambda: met))()
    assert finding.level is level
    assert (package in finding.remedy) is not met


def test_every_vital_tool_is_among_the_needs():
    assert set(part_checks.VITAL) <= {need.package for need in needs.NEEDS}


def test_a_part_that_is_not_built_is_no_error():
    def no_compiler() -> bool:
        raise Blocked("no rustc here")

    assert part_checks.built(lambda: True)().level is Level.OK
    assert part_checks.built(lambda: False)().level is Level.WARNING
    assert part_checks.built(no_compiler)().said == "no rustc here"


def test_a_look_that_fails_is_a_finding_and_the_others_go_on():
    def fails():
        raise PermissionError(13, "Permission denied")

    found = dict(look_at_all([Check("a", fails), Check("b", lambda: ok("fine"))]))
    levels = {check.name: finding.level for check, finding in found.items()}
    assert levels == {"a": Level.ERROR, "b": Level.OK}


def test_whatever_is_not_ok_has_a_remedy():
    for check, finding in look_at_all(host_checks.checks(Path("/nonexistent/x"))):
        assert (finding.level is Level.OK) == (finding.remedy == ""), check.name
