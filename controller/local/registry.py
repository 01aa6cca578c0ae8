"""An OCI registry on loopback: Debian's docker-registry with a directory of files.

What does not live here: what is pushed to it (examples/) and who may pull (controller.images).
"""

import shutil
from pathlib import Path

import yaml

from controller.errors import Blocked
from controller.host.files import write_atomic
from controller.local.probe import LOOPBACK
from controller.local.process import Program

PROGRAM = "docker-registry"


def program(directory: Path, port: int) -> Program:
    """The registry whose images are in ``directory``/registry. Raises Blocked without the program.

    Plain HTTP and no passwords: it listens on loopback only.
    """
    path = shutil.which(PROGRAM)
    if path is None:
        raise Blocked(f"there is no {PROGRAM} on PATH; apt-get install {PROGRAM}")
    config = directory / "registry.yaml"
    write_atomic(config, yaml.safe_dump(_config(directory / "registry", port)).encode())
    log = directory / "log" / "registry.log"
    return Program("registry", (path, "serve", str(config)), log, f"http://{LOOPBACK}:{port}/v2/")


def _config(storage: Path, port: int) -> dict[str, object]:
    return {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(storage)},
            "delete": {"enabled": True},
        },
        "http": {"addr": f"{LOOPBACK}:{port}"},
    }
