"""Programs and built parts that guests and the local cluster need, and whether KVM boots: looks.

What does not live here: the kernel's own features (``host_checks``).
"""

from collections.abc import Callable
from pathlib import Path

from controller.errors import Blocked
from controller.guest.kernel import KernelStore
from controller.host.kvm import Verdict, prove_kvm
from controller.local.setup import machine, needs
from controller.local.setup.findings import Check, Finding, error, ok, warning
from controller.settings import cache_dir

SETUP = "run torpor setup"
# what a node needs for Instances; the other needs are for building and for the local cluster
VITAL = ("skopeo", "umoci", "erofs-utils", "e2fsprogs", "util-linux")
BUILT: tuple[tuple[str, Callable[[], bool]], ...] = (
    ("control plane", machine.control_plane_is_built),
    ("guest init", machine.init_is_built),
    ("log keeper", machine.keeper_is_built),
    ("guest kernel", machine.kernel_is_here),
)


def checks() -> list[Check]:
    """The looks at programs and built parts."""
    return [
        Check("qemu", qemu),
        Check("kvm", lambda: kvm(_prove_kvm())),
        *(Check(need.package, tool(need)) for need in needs.NEEDS),
        *(Check(name, built(there)) for name, there in BUILT),
    ]


def qemu(look: Callable[[str], needs.Version | None] = needs.program_version) -> Finding:
    """QEMU's version against the floor."""
    floor = ".".join(map(str, needs.OLDEST_QEMU))
    version = look(needs.QEMU)
    if version is None:
        return error(f"no working {needs.QEMU}", f"{SETUP}, or install QEMU {floor} or newer")
    text = ".".join(map(str, version))
    if version < needs.OLDEST_QEMU:
        return error(f"{text} is older than {floor}", f"{SETUP}, or install a newer QEMU")
    return ok(text)


def kvm(verdict: Verdict | None) -> Finding:
    """Whether guests run on the processor itself; None: it could not be tried."""
    if verdict is None:
        return warning("not tried: that takes QEMU and a guest kernel", SETUP)
    if verdict.usable:
        return ok(verdict.why)
    remedy = "guests run in software (TCG), many times slower; use a host with working KVM"
    return warning(verdict.why, remedy)


def _prove_kvm() -> Verdict | None:
    program, kernel = needs.find_program(needs.QEMU), KernelStore(machine.kernels_dir()).current()
    if program is None or kernel is None:
        return None
    return prove_kvm(Path(program), kernel.vmlinuz, state_dir=cache_dir())


def tool(need: needs.Need) -> Callable[[], Finding]:
    """A look at one need: an error where Instances need it, else a warning."""

    def look() -> Finding:
        if need.met():
            return ok(f"there, to {need.why}")
        remedy = f"{SETUP}, or apt-get install --no-install-recommends {need.package}"
        finding = error if need.package in VITAL else warning
        return finding(f"missing; it is needed to {need.why}", remedy)

    return look


def built(there: Callable[[], bool]) -> Callable[[], Finding]:
    """A look at a part in the cache: what is not there is built when it is first needed."""

    def look() -> Finding:
        try:
            return ok("in the cache") if there() else warning("not built yet", SETUP)
        except Blocked as err:  # without a compiler nobody can say which build would be ours
            return warning(str(err), SETUP)

    return look
