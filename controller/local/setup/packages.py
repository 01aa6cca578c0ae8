"""Installs Debian packages by apt: quietly, only what is asked for, starting no service.

What does not live here: which packages (``needs``) and where QEMU comes from (``qemu``).
"""

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from controller.errors import Blocked
from controller.local.setup import commands, needs
from controller.local.setup.steps import Say

QUIET = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C", "NEEDRESTART_SUSPEND": "1"}
LOCK_SECONDS = 600  # somebody else's apt may be at work
LISTS = Path("/var/lib/apt/lists")
POLICY = Path("/usr/sbin/policy-rc.d")  # asked before any service is started; 101 = no
POLICY_MARK = "# written by torpor setup, for the time of one installation"
SERVICES = {"docker-registry": "docker-registry"}  # package -> the service it would enable


def install_missing(say: Say) -> None:
    """Install the packages of all unmet needs. Raises Blocked naming them when that cannot be."""
    missing = [need.package for need in needs.unmet()]
    qemu = [] if needs.qemu_met() else ["qemu-system-x86"]  # named too: one message, one remedy
    require_apt([*missing, *qemu])
    if missing:
        install(missing, say)


def require_apt(packages: Sequence[str], euid: int | None = None) -> None:
    """Raises Blocked with what to do by hand unless we are root and have apt."""
    names = " ".join(packages)
    if needs.find_program("apt-get") is None:
        raise Blocked(
            f"this system has no apt; install what these Debian packages bring: {names} "
            f"(QEMU {needs.OLDEST_QEMU[0]}.{needs.OLDEST_QEMU[1]} or newer), then run it again"
        )
    if (os.geteuid() if euid is None else euid) != 0:
        raise Blocked(
            f"missing packages: {names}; run this as root, or let root run: "
            f"apt-get install --no-install-recommends {names}{_hint(packages)}"
        )


def _hint(packages: Sequence[str]) -> str:
    old = any(name.startswith("qemu") for name in packages)
    return " (QEMU 8.2 or newer: Debian 12 has it in bookworm-backports)" if old else ""


def install(packages: Sequence[str], say: Say, release: str | None = None) -> None:
    """Install ``packages`` (from ``release`` if given); refresh apt's lists when they are stale."""
    argv = ["apt-get", "install", "-y", "--no-install-recommends", *_lock()]
    argv += ["-t", release] if release else []
    fresh = not all(_known(name) for name in packages)
    if fresh:
        update(say)
    say(f"installing {' '.join(packages)}")
    with _no_service_starts():
        try:
            commands.run([*argv, *packages], say, QUIET)
        except Blocked:
            if fresh:
                raise
            update(say)  # lists that are weeks old name versions that left the archive
            commands.run([*argv, *packages], say, QUIET)
    _disable_services(packages, say)


def update(say: Say) -> None:
    """Refresh apt's lists. A source that does not answer is said, not fatal: others may do."""
    try:
        commands.run(["apt-get", "update", *_lock()], say, QUIET)
    except Blocked as err:
        say(f"going on with the lists that are there: {err}")


def ensure_lists(say: Say) -> None:
    """Container images come without lists; ``apt-get download`` needs them."""
    if os.geteuid() == 0 and not any(LISTS.glob("*_Packages*")):
        update(say)


def candidate(package: str) -> needs.Version | None:
    """The (major, minor) that apt would install; None if it knows none."""
    answer = subprocess.run(
        ["apt-cache", "policy", package],
        capture_output=True,
        text=True,
        env={**os.environ, **QUIET},
        timeout=60,
        check=False,
    )
    return parse_candidate(answer.stdout)


def parse_candidate(text: str) -> needs.Version | None:
    """(7, 2) of apt-cache's "Candidate: 1:7.2+dfsg-7+deb12u18"; None for "(none)" or no line."""
    match = re.search(r"^ *Candidate: (?:\d+:)?(\d+)\.(\d+)", text, re.MULTILINE)
    return None if match is None else (int(match[1]), int(match[2]))


def _known(package: str) -> bool:
    answer = subprocess.run(
        ["apt-cache", "show", "--no-all-versions", package],
        capture_output=True,
        env={**os.environ, **QUIET},
        timeout=60,
        check=False,
    )
    return answer.returncode == 0


def _lock() -> list[str]:
    return ["-o", f"DPkg::Lock::Timeout={LOCK_SECONDS}"]


@contextmanager
def _no_service_starts(policy: Path = POLICY) -> Iterator[None]:
    """Deny service starts meanwhile. A policy of somebody else's stays in force as it is."""
    ours = not policy.exists() or POLICY_MARK in policy.read_text(errors="replace")
    if ours:  # one of ours that is there was left by a run that was killed
        policy.write_text(f"#!/bin/sh\n{POLICY_MARK}\nexit 101\n")
        policy.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            policy.unlink(missing_ok=True)


def _disable_services(packages: Sequence[str], say: Say) -> None:
    """What we installed as a tool must not come up as a service at the next boot either."""
    for package, service in SERVICES.items():
        if package in packages and needs.find_program("update-rc.d"):
            commands.run(["update-rc.d", service, "disable"], say, QUIET)
