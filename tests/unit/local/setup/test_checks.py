"""What doctor's looks say about hosts of all kinds, each host a directory or a value."""

import pytest

from controller.errors import Blocked
from controller.local.setup import host_checks, needs, part_checks
from controller.local.setup.findings import Check, Level, look_at_all, ok
from controller.settings import GIB


@pytest.mark.parametrize(
    ("version", "level"), [((3, 10, 9), Level.ERROR), ((3, 11, 0), Level.OK), ((4, 0), Level.OK)]
)
def test_python_has_a_floor(version, level):
    assert host_checks.python(version).level is level


def test_a_node_agent_needs_root():
    assert host_checks.privileges(0).level is Level.OK
    assert host_checks.privileges(1000).level is Level.ERROR


@pytest.mark.parametrize(
    ("available", "level"), [(GIB, Level.WARNING), (2 * GIB, Level.OK), (64 * GIB, Level.OK)]
)
def test_little_memory_is_a_warning(tmp_path, available, level):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 1 kB\nMemAvailable:   {available // 1024} kB\n")
    assert host_checks.memory(meminfo).level is level


def test_seccomp_is_vital(tmp_path):
    actions = tmp_path / "actions_avail"
    assert host_checks.seccomp(actions).level is Level.ERROR
    actions.write_text("kill_process allow\n")
    assert host_checks.seccomp(actions).level is Level.OK


@pytest.mark.parametrize(
    ("controllers", "level", "said"),
    [
        (None, Level.WARNING, "no cgroup v2"),
        ("cpu io", Level.WARNING, "without memory, pids"),
        ("cpuset cpu io memory pids", Level.OK, "v2 with"),
    ],
)
def test_missing_cgroup_controllers_are_named(tmp_path, controllers, level, said):
    if controllers is not None:
        (tmp_path / "cgroup.controllers").write_text(f"{controllers}\n")
    finding = host_checks.cgroup(tmp_path)
    assert finding.level is level
    assert said in finding.said


def test_a_tun_device_must_open_not_only_be_there(tmp_path):
    assert host_checks.tun(tmp_path / "absent").level is Level.WARNING
    assert "Is a directory" in host_checks.tun(tmp_path).said
    device = tmp_path / "tun"
    device.touch()
    assert host_checks.tun(device).level is Level.OK


@pytest.mark.parametrize(
    ("free", "level"), [(GIB, Level.ERROR), (3 * GIB, Level.WARNING), (10 * GIB, Level.OK)]
)
def test_a_full_disk_is_an_error_before_it_is_full(monkeypatch, tmp_path, free, level):
    monkeypatch.setattr(
        host_checks.shutil, "disk_usage", lambda path: type("U", (), {"free": free})
    )
    assert host_checks.disk(tmp_path).level is level


def test_a_state_directory_that_is_not_there_yet_is_judged_by_the_one_above(tmp_path):
    assert host_checks.existing(tmp_path / "a" / "b") == tmp_path
    assert str(tmp_path) in host_checks.disk(tmp_path / "a" / "b").said


def test_looking_for_reflink_leaves_nothing_behind(tmp_path):
    assert host_checks.reflink(tmp_path).level in (Level.OK, Level.WARNING)
    assert not list(tmp_path.iterdir())


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
    for check, finding in look_at_all(host_checks.checks(host_checks.Path("/nonexistent/x"))):
        assert (finding.level is Level.OK) == (finding.remedy == ""), check.name
