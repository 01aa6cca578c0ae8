"""``install.json``: what one directory's cluster is made of, the same at every ``up``.

An id of its own, sizes, ports: whatever must not change while guests and users rely on it. What
does not live here: what runs (``state.json``).
"""

import os
import secrets
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controller.errors import Blocked, Rejected
from controller.host.files import write_atomic
from controller.local import probe
from controller.local.controlplane import Ports
from controller.settings import GIB, NodeSettings, OperatorSettings

FILE = "install.json"
# not below the home of root: that is closed to the uids that VMMs run under
DEFAULT_DIRECTORY = Path("/var/lib/torpor")
RUN_BASE = Path("/run/torpor")
MOST_NODES = 100
REGISTRY_PORT = 5055  # the examples name it
UIDS_PER_NODE = 10_000
UID_BLOCK = MOST_NODES * UIDS_PER_NODE  # one install's
UID_BLOCKS = 2000  # from 200,000 up to just under 2**31


class _Frozen(BaseModel):
    # a field that another release wrote is no damage
    model_config = ConfigDict(extra="ignore", frozen=True)


class Options(_Frozen):
    """What ``torpor up`` lets one choose."""

    nodes: int = Field(1, ge=1, le=MOST_NODES)
    registry_port: int = Field(REGISTRY_PORT, ge=0, le=65535)  # 0: any free one
    node_cpus: int = Field(0, ge=0)  # each Node's; 0: what the host has
    node_memory_bytes: int = Field(0, ge=0)  # each Node's; 0: the host's, divided
    node_pods: int = Field(500, ge=1)  # each Node's
    node_lease_seconds: int = Field(20, ge=4)  # silent for longer: the Node is NotReady
    reserved_memory_bytes: int = Field(GIB, ge=0)  # for the control plane and the agents


class Install(_Frozen):
    """One directory's cluster."""

    id: str = Field(pattern="^[0-9a-f]{8}$")
    directory: Path
    options: Options = Options()
    control_plane: tuple[int, int, int, int, int]
    registry: int
    operator_probe: int
    node_metrics: tuple[int, ...] = ()

    @property
    def ports(self) -> Ports:
        """The control plane's."""
        return Ports(*self.control_plane)

    @property
    def run_dir(self) -> Path:
        """Where the agents' sockets are: short, because a socket's path has 107 bytes."""
        return RUN_BASE / self.id

    @property
    def node_names(self) -> tuple[str, ...]:
        """node-1, node-2, …"""
        return tuple(f"node-{number + 1}" for number in range(self.options.nodes))

    @property
    def registry_address(self) -> str:
        """As in an image reference."""
        return f"{probe.LOOPBACK}:{self.registry}"

    def uid_base(self, number: int) -> int:
        """The first uid of node ``number`` (from 0). Installs share no uids but by rare chance."""
        block = int(self.id, 16) % UID_BLOCKS
        return 200_000 + block * UID_BLOCK + number * UIDS_PER_NODE

    def node_settings(self, number: int) -> NodeSettings:
        """The settings of agent ``number``: nothing that two agents would share."""
        name = self.node_names[number]
        return NodeSettings(
            node_name=name,
            install_id=f"{(int(self.id, 16) + number) % 2**32:08x}",
            state_dir=self.directory / "nodes" / name / "state",
            run_dir=self.run_dir / name,
            uid_base=self.uid_base(number),
            uid_count=UIDS_PER_NODE,
            cgroup_prefix=f"torpor-{self.id}-{name}",
            metrics_port=self.node_metrics[number],
            lease_seconds=self.options.node_lease_seconds,
            insecure_registries=(self.registry_address, f"localhost:{self.registry}"),
        )

    def operator_settings(self) -> OperatorSettings:
        """The operator's."""
        return OperatorSettings(
            # the same after a restart, which then need not wait for its own Lease to run out
            identity=f"local-{self.id}",
            probe_port=self.operator_probe,
            node_lease_seconds=self.options.node_lease_seconds,
        )


def load(directory: Path) -> Install | None:
    """Read it, None where there is none. Raises Rejected when it is damaged."""
    file = directory / FILE
    try:
        return Install.model_validate_json(file.read_text())
    except FileNotFoundError:
        return None
    except ValidationError as err:
        first = err.errors()[0]
        raise Rejected(
            f"{file} is damaged: {first['msg']}; restore it, or remove {directory}"
        ) from err


def settle(directory: Path, **chosen: int | None) -> Install:
    """The install of ``directory``: as it was, with what is ``chosen`` now, on ports that are free.

    Ports stay as long as nobody took them; a registry port is part of image references and never
    changes by itself. Raises Blocked when that one is taken, Rejected for a bad choice.
    """
    check_reachable(directory)
    before = load(directory)
    options = _choose(before.options if before else Options(), chosen)
    wanted = 6 + options.nodes
    kept = _ports_of(before)
    fresh = probe.free_ports(wanted)
    ports = [
        kept[i] if i < len(kept) and probe.is_free(kept[i]) else fresh[i] for i in range(wanted)
    ]
    install = Install(
        id=before.id if before else secrets.token_hex(4),
        directory=directory,
        options=options,
        control_plane=(ports[0], ports[1], ports[2], ports[3], ports[4]),
        operator_probe=ports[5],
        registry=_registry_port(before, options),
        node_metrics=tuple(ports[6:]),
    )
    write_atomic(directory / FILE, install.model_dump_json(indent=1).encode())
    return install


def check_reachable(directory: Path) -> None:
    """Make the directory, open to pass through: VMMs have uids of their own, disks are in there.

    Raises Rejected when a directory above it is closed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o711)
    for parent in directory.parents:
        if not parent.stat().st_mode & 0o001:
            raise Rejected(
                f"{directory}: {parent} is closed to other users, so no VMM could open its disks; "
                f"choose another place (--dir, TORPOR_DIR), or chmod o+x {parent}"
            )


def _choose(before: Options, chosen: dict[str, int | None]) -> Options:
    changes: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
    try:
        return Options.model_validate({**before.model_dump(), **changes})
    except ValidationError as err:
        first = err.errors()[0]
        raise Rejected(f"{first['loc'][0]}: {first['msg']}") from err


def _ports_of(install: Install | None) -> list[int]:
    if install is None:
        return []
    own = [*install.control_plane, install.operator_probe]
    return own + list(install.node_metrics)


def _registry_port(before: Install | None, options: Options) -> int:
    port = options.registry_port
    if port == 0:
        port = before.registry if before else probe.free_ports(1)[0]
    if not probe.is_free(port):
        raise Blocked(f"port {port} of loopback is taken; torpor up --registry-port 0 (any) or N")
    return port


def host_cpus() -> int:
    """What a Node offers when nothing is chosen."""
    return os.cpu_count() or 1
