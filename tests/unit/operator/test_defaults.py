"""What is in force where spec is silent."""

import pytest

from controller.core.desired import Hardware
from controller.errors import Rejected
from controller.operator.defaults import hardware
from controller.settings import GIB, MIB, Defaults

DEFAULTS = Defaults()


def test_settings_fill_what_spec_leaves_out() -> None:
    assert hardware({}, DEFAULTS) == Hardware("qemu", 2, GIB, 10 * GIB, 0)


def test_spec_wins() -> None:
    spec = {
        "hypervisor": "other", "vcpus": 4, "memory": {"size": "512Mi"},
        "overlay": {"size": "1Gi"}, "disk": {"bandwidth": "100M"},
    }  # fmt: skip
    assert hardware(spec, DEFAULTS) == Hardware("other", 4, 512 * MIB, GIB, 100_000_000)


def test_automatic_disk_bandwidth_is_proportional_to_vcpus() -> None:
    settings = Defaults(disk_bandwidth_per_vcpu=1000)
    assert hardware({"vcpus": 3}, settings).disk_bandwidth == 3000
    assert hardware({"vcpus": 3, "disk": {"bandwidth": 0}}, settings).disk_bandwidth == 3000
    assert hardware({"vcpus": 3, "disk": {"bandwidth": 7}}, settings).disk_bandwidth == 7


def test_quantity_that_is_none_is_rejected() -> None:
    with pytest.raises(Rejected, match="much"):
        hardware({"memory": {"size": "much"}}, DEFAULTS)
