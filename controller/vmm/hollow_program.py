"""The program of a hollow VMM, as one file: four modules, and a Python that runs them.

It comes on stdin, because the uid of a VMM need not be able to reach our files. What does not live
here: what it does (``hollow_process`` and what it imports).
"""

import functools
import hashlib
import os
import shutil
import sys
from pathlib import Path

from controller.errors import Blocked

_HOME = Path(__file__).parent
_MODULES = ("hollow_wire", "hollow_guest", "hollow_vmm")  # in the order of their imports
# The import finds a module that is there already, and looks for no file.
_PRELUDE = "import sys\nmade = sys.modules[{name!r}] = type(sys)({name!r})\n"
_PRELUDE += "exec({source!r}, made.__dict__)\ndel made\n"


@functools.cache
def text() -> bytes:
    """The program."""
    parts = [
        _PRELUDE.format(name=f"controller.vmm.{name}", source=_source(name)) for name in _MODULES
    ]
    return "".join((*parts, _source("hollow_process"))).encode()


def _source(name: str) -> str:
    return (_HOME / f"{name}.py").read_text()


@functools.cache
def digest() -> str:
    """Which build of it this is."""
    return hashlib.sha256(text()).hexdigest()[:16]


def opened() -> int:
    """A descriptor to read it from; the caller closes it."""
    return os.open(f"/proc/self/fd/{_memory()}", os.O_RDONLY | os.O_CLOEXEC)


@functools.cache
def _memory() -> int:
    """One copy for all VMMs."""
    fd = os.memfd_create("hollow_process", os.MFD_CLOEXEC)
    os.write(fd, text())
    return fd


def python() -> str:
    """A Python that any uid may run: the system's, before one in somebody's home."""
    found = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
    if not found:
        raise Blocked("no python3 for hollow VMMs: install python3", reason="VmmMissing")
    return found
