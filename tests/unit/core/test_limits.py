"""A node's own maxima for one Instance: refused before anything of it exists there."""

import pytest

from controller.core.desired import Desired, Hardware, Mode, Permit
from controller.core.observed import ABSENT, Lock, Observed
from controller.core.plan import plan
from controller.core.rules import Rules
from controller.core.steps import CreateRecord
from controller.vmm.driver import BOOT_EDGES

GIB = 1024**3
WISH = Desired(
    uid="5f0c8f0e-7a44-4a2a-9e57-1b2f0a6a2c11",
    namespace="default",
    name="web",
    generation=1,
    mode=Mode.RUNNING,
    epoch=1,
    image="registry:5000/app:1",
    hardware=Hardware("qemu", vcpus=4, memory=2 * GIB, overlay=GIB),
    permit=Permit.GRANTED,
    reservation="pod",
)
NOTHING = Observed(
    record=ABSENT,
    lock=Lock.FREE,
    vmm=ABSENT,
    guest=ABSENT,
    image=ABSENT,
    kernel="6.1",
    overlay=False,
)


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        pytest.param({"max_vcpus": 3}, "4 vcpus", id="more vcpus than the node gives one"),
        pytest.param({"max_memory": GIB}, "bytes of memory", id="more memory than it gives one"),
    ],
)
def test_an_instance_above_the_nodes_maximum_is_stalled_and_leaves_no_trace(limits, named):
    made = plan(WISH, NOTHING, 0.0, Rules(BOOT_EDGES, **limits))
    assert made.steps == ()
    assert made.waiting is not None
    assert made.waiting.reason == "TooLargeForNode"
    assert made.waiting.stalled
    assert named in made.waiting.message


def test_an_instance_at_the_nodes_maximum_is_provisioned():
    made = plan(WISH, NOTHING, 0.0, Rules(BOOT_EDGES, max_vcpus=4, max_memory=2 * GIB))
    assert made.steps[0] == CreateRecord()
