"""KVM or TCG: proven by a boot, told in status and on the Node, never guessed.

``/dev/kvm`` may be there and not work. What the proof is lives in ``host.kvm``; here is when it is
made, and the condition ``TorporKVM`` that says so on this agent's own Node.
"""

import asyncio
import logging
import shutil
from pathlib import Path

from controller.errors import Retry, TorporError
from controller.guest.artifacts import GuestArtifacts
from controller.host import kvm as proof
from controller.host.kvm import Verdict
from controller.kube.resources import NODES
from controller.node import clock
from controller.node.parts import Parts

log = logging.getLogger(__name__)

CONDITION = "TorporKVM"
RETRY_SECONDS = 10.0


async def settle(parts: Parts, artifacts: GuestArtifacts) -> Verdict:
    """Whether guests run under KVM here. Takes seconds once for each boot of the host."""
    if parts.settings.kvm == "never":
        return Verdict(False, "the node's settings say kvm: never")
    found = shutil.which(parts.settings.qemu_binary)
    if found is None:
        return Verdict(False, f"{parts.settings.qemu_binary} is not installed")
    try:
        return await asyncio.to_thread(
            proof.prove_kvm, Path(found), artifacts.vmlinuz, state_dir=parts.places.state
        )
    except Retry as err:
        return Verdict(False, f"it could not be tried: {err}")


async def announce(parts: Parts, verdict: Verdict) -> None:
    """Say on our Node whether KVM works, once; try again until it was heard."""
    reason = "Proven" if verdict.usable else "NotUsable"
    slower = "" if verdict.usable else "; guests run under TCG, which is much slower"
    condition = {
        "type": CONDITION,
        "status": "True" if verdict.usable else "False",
        "reason": reason,
        "message": f"{verdict.why}{slower}"[:1024],
        "lastTransitionTime": clock.wall(),
        "lastHeartbeatTime": clock.wall(),
    }
    body = {"status": {"conditions": [condition]}}
    while True:
        try:
            # strategic merge: the list is keyed by type, other conditions stay
            await parts.client.patch(
                NODES,
                parts.settings.node_name,
                body,
                subresource="status",
                content_type="application/strategic-merge-patch+json",
            )
        except TorporError as err:
            log.warning("cannot say %s on the Node: %s", CONDITION, err)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return
