"""What an Instance takes from its node."""

from dataclasses import replace

import pytest

from controller.core.capacity import (
    DEFAULT_OVERHEAD,
    MIB,
    VMM_OVERHEAD,
    cpu_request,
    memory_request,
)
from tests.values import HARDWARE


def test_memory_request_is_the_guests_and_its_vmms() -> None:
    assert memory_request(HARDWARE) == 2**30 + VMM_OVERHEAD["qemu"]
    unknown = replace(HARDWARE, hypervisor="other", memory=64 * MIB)
    assert memory_request(unknown) == 64 * MIB + DEFAULT_OVERHEAD


@pytest.mark.parametrize(
    ("vcpus", "ratio", "milli"),
    [(2, 10.0, 200), (1, 3.0, 334), (1, 1.0, 1000), (64, 0.5, 128_000), (1, 1e9, 1)],
)
def test_cpu_request_is_rounded_up_and_never_nothing(vcpus: int, ratio: float, milli: int) -> None:
    assert cpu_request(replace(HARDWARE, vcpus=vcpus), ratio) == milli
