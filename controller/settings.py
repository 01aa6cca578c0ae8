"""Settings: one frozen model per process, read once at start from a YAML file.

Unknown keys are refused with the line's name, so a typo never becomes a silent default. What does
not live here: anything a user says about one Instance (that is ``spec``), and any look-up of the
host (``host.facts``).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controller.errors import Rejected

MIB = 1024 * 1024
GIB = 1024 * MIB


def cache_dir() -> Path:
    """Where built things live: ``$TORPOR_CACHE``, else the user's cache directory."""
    if given := os.environ.get("TORPOR_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "torpor"


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=_Settings)


class LogLimits(_Settings):
    """A log stream keeps at most ``max_bytes * files`` bytes on disk."""

    max_bytes: int = Field(4 * MIB, ge=4096)
    files: int = Field(3, ge=1, le=100)


class Defaults(_Settings):
    """What an Instance gets where its spec is silent. Resolved by the operator, then frozen."""

    hypervisor: str = "qemu"
    vcpus: int = Field(2, ge=1, le=64)
    memory: str = "1Gi"
    overlay: str = "10Gi"
    # bytes/s for each vCPU where disk.bandwidth is 0 (auto); 0 here = no limit
    disk_bandwidth_per_vcpu: int = Field(0, ge=0)


class OperatorSettings(_Settings):
    """Settings of the one operator of a cluster."""

    namespace: str = "torpor-system"
    identity: str = ""  # of the leader Lease; empty: host name and pid
    defaults: Defaults = Defaults()
    cpu_allocation_ratio: float = Field(10.0, gt=0, allow_inf_nan=False)
    reservation_image: str = "torpor.dev/reservation:1"
    scheduler_name: str = "default-scheduler"
    node_lease_seconds: int = Field(40, ge=2)  # older than this: the node is silent
    probe_port: int = Field(8080, ge=0, le=65535)  # probes and metrics; 0: any free port
    probe_address: str = "127.0.0.1"  # in a Pod: 0.0.0.0
    leader_lease_seconds: int = Field(15, ge=2)
    workers: int = Field(8, ge=1, le=256)


class NodeSettings(_Settings):
    """Settings of one node agent."""

    node_name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
    install_id: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
    state_dir: Path  # survives a reboot
    run_dir: Path  # on a tmpfs; sockets, so the path stays short
    namespace: str = "torpor-system"  # where this agent's Lease lives
    uid_base: int = Field(200_000, ge=10_000, le=2**31)
    uid_count: int = Field(10_000, ge=1, le=1_000_000)
    cgroup_prefix: str = "torpor"
    metrics_port: int = Field(9090, ge=0, le=65535)  # loopback only; 0: any free port
    lease_seconds: int = Field(40, ge=2)  # how long this agent may be silent
    workers: int = Field(16, ge=1, le=1024)
    hypervisors: tuple[str, ...] = ("qemu",)
    qemu_binary: str = "qemu-system-x86_64"
    kvm: Annotated[str, Field(pattern="^(auto|never)$")] = "auto"  # auto: only when proven
    tcg_tb_size_mib: int = Field(32, ge=8, le=1024)
    kernel: Path | None = None  # a kernel file of your own; default: Debian's newest cloud kernel
    kernel_modules: Path | None = None
    insecure_registries: tuple[str, ...] = ()
    image_store_bytes: int = Field(20 * GIB, ge=0)
    workload_log: LogLimits = LogLimits()
    console_log: LogLimits = LogLimits(max_bytes=MIB, files=2)
    vmm_log: LogLimits = LogLimits(max_bytes=MIB, files=2)
    max_vcpus: int = Field(0, ge=0)  # per Instance; 0: no limit of ours
    max_memory_bytes: int = Field(0, ge=0)  # per Instance; 0: no limit of ours
    restart_backoff_seconds: float = Field(10.0, gt=0, allow_inf_nan=False)
    restart_backoff_cap_seconds: float = Field(300.0, gt=0, allow_inf_nan=False)
    # a run that lasted this long clears the back-off
    restart_reset_seconds: float = Field(600.0, gt=0, allow_inf_nan=False)
    resync_seconds: float = Field(300.0, gt=0, allow_inf_nan=False)
    orphan_sweep_seconds: float = Field(60.0, gt=0, allow_inf_nan=False)
    boot_deadline_seconds: float = Field(120.0, gt=0, allow_inf_nan=False)


def load(model: type[S], path: Path | None, **overrides: object) -> S:
    """Read ``path`` (YAML, may be None) into ``model``; ``overrides`` that are not None win.

    Raises Rejected naming the file, the key and the rule.
    """
    data: dict[str, Any] = _read(path)
    data.update({k: v for k, v in overrides.items() if v is not None})
    try:
        return model.model_validate(data)
    except ValidationError as err:
        first = err.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise Rejected(f"settings {path or '(none)'}: {key}: {first['msg']}") from err


def dump(settings: _Settings) -> str:
    """The YAML text that ``load`` reads back to an equal model."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        data = yaml.safe_load(path.read_text()) or {}
    except OSError as err:
        raise Rejected(f"settings {path}: {err.strerror}; create it or name another") from err
    except yaml.YAMLError as err:
        raise Rejected(f"settings {path}: not YAML: {str(err).splitlines()[0]}") from err
    if not isinstance(data, Mapping):
        raise Rejected(f"settings {path}: a mapping of keys is expected")
    return dict(data)
