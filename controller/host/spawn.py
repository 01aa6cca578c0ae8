"""The way from our process to a confined one: uid, capabilities, limits, cgroup, descriptors.

The child is made ready by programs that are exec'd one after the other (sh, prlimit, setpriv),
because Python code between fork and exec is not safe in a process with threads. Together they
cost less than 10 ms. What does not live here: what a process is afterwards (``process``).
"""

import os
import resource
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from controller.errors import Blocked, Retry

SETPRIV = "/usr/bin/setpriv"
PRLIMIT = "/usr/bin/prlimit"
DEFAULT_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C"}

# A core file would hold the whole memory of a guest. 1024 descriptors is the least that QEMU with
# all its volumes needs; 4096 leaves room.
DEFAULT_LIMITS: Mapping[int, int] = MappingProxyType(
    {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 4096}
)
_LIMIT_OPTIONS = {
    resource.RLIMIT_AS: "as",
    resource.RLIMIT_CORE: "core",
    resource.RLIMIT_CPU: "cpu",
    resource.RLIMIT_FSIZE: "fsize",
    resource.RLIMIT_MEMLOCK: "memlock",
    resource.RLIMIT_NOFILE: "nofile",
    resource.RLIMIT_NPROC: "nproc",
}
# The shell joins the cgroup before anything else runs, so nothing ever runs outside it. "0" means
# the writer itself.
_JOIN = 'procs=$1; shift; echo 0 >"$procs" && exec "$@"'


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What a process may be. ``cgroup``: a directory to join, None for ours. Limits in units of
    setrlimit, soft and hard alike, by RLIMIT_ constant."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    cgroup: Path | None = None
    rlimits: Mapping[int, int] = field(default_factory=lambda: DEFAULT_LIMITS)


def launch(
    argv: list[str],
    sandbox: Sandbox,
    pass_fds: tuple[int, ...],
    stdio: tuple[int | None, int | None, int | None],
    env: dict[str, str] | None,
    cwd: Path,
) -> int:
    """Start ``argv`` and return its pid, a child of ours that nobody waits for. Blocking.

    Raises Blocked, Retry as ``process.spawn`` says.
    """
    if not (argv[0].startswith("/") and os.access(argv[0], os.X_OK)):
        raise Blocked(f"cannot start {argv[0]}: no executable file there", reason="NoExecutable")
    null = subprocess.DEVNULL
    stdin, stdout, stderr = (null if fd is None else fd for fd in stdio)
    try:
        child = subprocess.Popen(
            [*_confine(sandbox), *argv],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
            env=DEFAULT_ENV if env is None else env,
            cwd=cwd,
            umask=0o077,
            start_new_session=True,
        )
    except OSError as error:
        raise Retry(f"cannot start {argv[0]}: {error}", reason="CannotStart") from error
    # subprocess would collect the child's status at some later call of its own, and free the pid
    # under our pidfd. It forgets a child whose status it believes to have.
    child.returncode = 0
    return child.pid


def _confine(sandbox: Sandbox) -> list[str]:
    words = [PRLIMIT]
    words += [f"--{_LIMIT_OPTIONS[kind]}={n}:{n}" for kind, n in sandbox.rlimits.items()]
    words += [SETPRIV, "--no-new-privs", "--inh-caps=-all"]
    if os.geteuid() == 0:
        groups = ",".join(map(str, sandbox.groups))
        words += [f"--reuid={sandbox.uid}", f"--regid={sandbox.gid}"]
        words += [f"--groups={groups}" if groups else "--clear-groups"]
        words += ["--bounding-set=-all", "--ambient-caps=-all"]
    elif (sandbox.uid, sandbox.gid) != (os.geteuid(), os.getegid()):
        raise Blocked(f"cannot start a process as uid {sandbox.uid}: not root", reason="NotRoot")
    words.append("--")
    if sandbox.cgroup is None:
        return words
    return ["/bin/sh", "-c", _JOIN, "sh", str(sandbox.cgroup / "cgroup.procs"), *words]
