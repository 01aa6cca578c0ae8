"""The hardware in force: what spec says, and the operator's settings where it is silent."""

from controller.api.meta import parse_quantity
from controller.core.desired import Hardware
from controller.core.ownership import Object
from controller.settings import Defaults


def hardware(spec: Object, defaults: Defaults) -> Hardware:
    """Settle ``spec``. Sizes in bytes. Raises Rejected for a quantity that is none."""
    vcpus = int(spec.get("vcpus") or defaults.vcpus)
    asked = parse_quantity((spec.get("disk") or {}).get("bandwidth") or 0)
    return Hardware(
        hypervisor=spec.get("hypervisor") or defaults.hypervisor,
        vcpus=vcpus,
        memory=parse_quantity((spec.get("memory") or {}).get("size") or defaults.memory),
        overlay=parse_quantity((spec.get("overlay") or {}).get("size") or defaults.overlay),
        disk_bandwidth=asked or vcpus * defaults.disk_bandwidth_per_vcpu,
    )
