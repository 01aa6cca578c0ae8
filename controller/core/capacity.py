"""Arithmetic of what an Instance takes from its node, as the scheduler is to see it."""

import math

from controller.core.desired import Hardware

MIB = 1024 * 1024

# What a VMM takes beyond guest RAM, in bytes: its own anonymous memory, measured while a guest of
# 512 MiB ran (tests/node/test_qemu_overhead.py), rounded up with a margin for its threads' stacks.
VMM_OVERHEAD = {"qemu": 128 * MIB}
DEFAULT_OVERHEAD = 128 * MIB


def rounded(number: int) -> str:
    """Bytes as a quantity of three figures, for people: 3.9Mi, 181Mi, 512."""
    size = float(number)
    for unit in ("", "Ki", "Mi", "Gi", "Ti"):
        if size < 1000 or unit == "Ti":
            break
        size /= 1024
    return f"{size:.1f}{unit}" if unit and size < 10 else f"{size:.0f}{unit}"


def memory_request(hardware: Hardware) -> int:
    """Bytes to reserve: guest RAM and what its VMM takes beside it."""
    return hardware.memory + VMM_OVERHEAD.get(hardware.hypervisor, DEFAULT_OVERHEAD)


def cpu_request(hardware: Hardware, allocation_ratio: float) -> int:
    """Thousandths of a CPU to reserve: virtual CPUs are shared ``allocation_ratio`` to one."""
    return max(1, math.ceil(hardware.vcpus * 1000 / allocation_ratio))
