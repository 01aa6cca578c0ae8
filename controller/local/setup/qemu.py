"""A new enough QEMU: from the release if it has one, else from its backports.

The source of backports is derived from the one that apt already uses, and taken away again if
nothing can be installed from it. What does not live here: reading sources (``sources``).
"""

from pathlib import Path

from controller.errors import Blocked
from controller.local.setup import needs, packages, sources
from controller.local.setup.steps import Say

PACKAGES = ("qemu-system-x86",)
APT = Path("/etc/apt")
OS_RELEASE = Path("/etc/os-release")
ENTRY = "sources.list.d/torpor-backports.sources"


def install(say: Say) -> None:
    """Install QEMU ≥ 8.2. Raises Blocked when neither the release nor its backports have it."""
    packages.require_apt(PACKAGES)
    packages.ensure_lists(say)
    if _offered():
        packages.install(PACKAGES, say)
        return
    codename = release_codename(OS_RELEASE.read_text())
    if not codename:
        raise Blocked(f"{OS_RELEASE} names no release; {_by_hand()}")
    entry = sources.backports(read_sources(APT), codename)
    if entry is None:
        raise Blocked(
            f"apt has no source of {codename} to derive {codename}-backports from; {_by_hand()}"
        )
    _from_backports(entry, f"{codename}-backports", say)


def read_sources(apt: Path) -> list[sources.Source]:
    """All enabled sources below ``apt`` (/etc/apt), in the order in which apt reads them."""
    files = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*.*"))]
    found: list[sources.Source] = []
    for file in files:
        if file.suffix in (".list", ".sources") and file.is_file():
            found += sources.parse(file.name, file.read_text(errors="replace"))
    return found


def release_codename(os_release: str) -> str:
    """bookworm, from the text of /etc/os-release; "" if it does not say."""
    for line in os_release.splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip().strip("\"'")
    return ""


def _from_backports(entry: str, suite: str, say: Say) -> None:
    file = APT / ENTRY
    if entry:
        say(f"adding {suite} to apt's sources: {file}")
        file.write_text(f"# added by torpor setup, for QEMU {_floor()} or newer\n{entry}")
    try:
        packages.update(say)
        packages.install(PACKAGES, say, release=suite)
    except Blocked:
        if entry:
            file.unlink(missing_ok=True)
        raise


def _offered() -> bool:
    version = packages.candidate(PACKAGES[0])
    return version is not None and version >= needs.OLDEST_QEMU


def _floor() -> str:
    return ".".join(map(str, needs.OLDEST_QEMU))


def _by_hand() -> str:
    return f"install QEMU {_floor()} or newer by hand, then run it again"
