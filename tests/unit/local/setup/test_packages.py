"""What is missing, what apt would install, and what is said when apt cannot be used."""

from pathlib import Path

import pytest

from controller.errors import Blocked
from controller.local.setup import commands, needs, packages
from tests.waiting import until


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\n", (7, 2)),
        ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\n", (10, 0)),
        ("cargo 1.65.0\n", (1, 65)),
        ("nothing here", None),
    ],
)
def test_versions_are_read_from_what_a_program_says(text, version):
    assert needs.parse_version(text) == version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("q:\n  Installed: (none)\n  Candidate: 1:7.2+dfsg-7+deb12u18+b3\n", (7, 2)),
        ("q:\n  Candidate: 1:10.0.2+ds-2+deb13u1~bpo12+1\n", (10, 0)),
        ("q:\n  Installed: 1:9.9\n  Candidate: (none)\n", None),
        ("", None),
    ],
)
def test_the_candidate_is_what_apt_would_install(text, version):
    assert packages.parse_candidate(text) == version


def test_a_program_that_is_too_old_is_missing(tmp_path, monkeypatch):
    tool = tmp_path / "sometool"
    tool.write_text("#!/bin/sh\necho sometool 1.62.9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert not needs.at_least("sometool", (1, 63))()
    assert needs.at_least("sometool", (1, 62))()


@pytest.mark.parametrize("body", ["exit 1", "echo no version"], ids=["fails", "mumbles"])
def test_a_program_that_cannot_say_its_version_is_missing(tmp_path, monkeypatch, body):
    tool = tmp_path / "sometool"
    tool.write_text(f"#!/bin/sh\n{body}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert not needs.at_least("sometool", (0, 0))()
    assert needs.program_version("no-such-tool-anywhere") is None


def test_a_dynamic_program_does_not_meet_the_need_for_a_static_one(tmp_path, monkeypatch):
    for name, text in {
        "dyn": b"\x7fELF....\0/lib64/ld-linux-x86-64.so.2\0",
        "fix": b"\x7fELF",
    }.items():
        (tmp_path / name).write_bytes(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [needs.is_static(name)() for name in ("dyn", "fix", "absent")] == [False, True, False]


def test_only_unmet_needs_are_listed():
    table = (needs.Need("a", "x", lambda: True), needs.Need("b", "y", lambda: False))
    assert [need.package for need in needs.unmet(table)] == ["b"]


def test_each_need_has_its_own_package_and_a_reason():
    names = [need.package for need in needs.NEEDS]
    assert len(names) == len(set(names))
    assert all(need.why for need in needs.NEEDS)


def test_without_root_the_message_is_the_command_to_type(monkeypatch):
    monkeypatch.setattr(needs, "find_program", lambda name: f"/usr/bin/{name}")
    with pytest.raises(Blocked, match=r"apt-get install --no-install-recommends skopeo umoci$"):
        packages.require_apt(["skopeo", "umoci"], euid=1000)
    with pytest.raises(Blocked, match="bookworm-backports"):
        packages.require_apt(["qemu-system-x86"], euid=1000)
    packages.require_apt(["skopeo"], euid=0)


def test_without_apt_the_message_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(needs, "find_program", lambda name: None)
    with pytest.raises(Blocked, match=r"no apt.*skopeo.*QEMU 8\.2 or newer"):
        packages.require_apt(["skopeo"], euid=0)


def test_services_are_denied_meanwhile_and_the_denial_is_taken_away(tmp_path):
    policy = tmp_path / "policy-rc.d"
    with packages._no_service_starts(policy):
        assert policy.read_text().endswith("exit 101\n")
        assert policy.stat().st_mode & 0o111
    assert not policy.exists()


def test_the_denial_is_taken_away_when_the_installation_fails(tmp_path):
    policy = tmp_path / "policy-rc.d"
    with pytest.raises(Blocked), packages._no_service_starts(policy):
        raise Blocked("apt said no")
    assert not policy.exists()


def test_a_policy_of_somebody_else_stays_as_it_is(tmp_path):
    policy = tmp_path / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 0\n")
    with packages._no_service_starts(policy):
        assert policy.read_text() == "#!/bin/sh\nexit 0\n"
    assert policy.exists()


def test_a_denial_left_by_a_killed_run_is_taken_away(tmp_path):
    policy = tmp_path / "policy-rc.d"
    policy.write_text(f"#!/bin/sh\n{packages.POLICY_MARK}\nexit 101\n")
    with packages._no_service_starts(policy):
        pass
    assert not policy.exists()


def test_a_command_passes_its_lines_on():
    said = []
    commands.run(["sh", "-c", "echo one; echo; echo two >&2"], said.append)
    assert said == ["one", "two"]


def test_a_failed_command_says_its_last_words():
    with pytest.raises(Blocked, match=r"failed with 3: one \| two$"):
        commands.run(["sh", "-c", "echo one; echo two; exit 3"], lambda line: None)


def test_a_command_that_is_not_there_is_named():
    with pytest.raises(Blocked, match="cannot run no-such-command-anywhere"):
        commands.run(["no-such-command-anywhere"], lambda line: None)


async def test_an_interrupt_ends_the_commands_children_too():
    pids = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        commands.run(["sh", "-c", "sleep 1000 & echo $!; wait"], interrupt)
    await until(lambda: not runs(pids[0]))


def runs(pid: int) -> bool:
    """False too for a zombie that whoever adopted it has yet to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
