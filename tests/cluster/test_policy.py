"""What a node agent may write, clause by clause: one request that passes, one that does not.

The requests carry real tokens, bound to real Nodes. While they run, the agents' account has every
right that RBAC can give: so what is refused here is refused by the policies. That RBAC alone gives
the rights the agents need, and no other, is asked apart.
"""

import secrets
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from controller.core.names import FINALIZER, node_lease
from controller.local import binaries
from controller.local.admin import Admin, Refused
from controller.local.controlplane import ControlPlane
from controller.local.nodes import AGENT_ACCOUNT
from controller.node.kvm import CONDITION
from tests.clusterkit import ROOT
from tests.identities import (
    INSTANCES,
    REVIEWS,
    SYSTEM,
    Answer,
    Bearer,
    Object,
    apply_base,
    bind,
    delete_all,
    token,
    until_refused,
    user,
)

NODES = "/api/v1/nodes"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases"
OTHERS = "test.example/hold"
TIME = "2026-01-01T00:00:00Z"
READY = {
    "type": "Ready", "status": "False", "reason": "Reconciling", "message": "",
    "lastTransitionTime": TIME,
}  # fmt: skip
SCHEDULED = READY | {"type": "Scheduled", "status": "True", "reason": "Scheduled"}
RELEASED = SCHEDULED | {"status": "False", "reason": "Released"}
LINEAGE: Object = {"parent": "uid-1", "root": "uid-0", "depth": 2}
PLACED: Object = {
    "id": "c0ffee",
    "state": "Stopped",
    "epoch": 1,
    "reservation": "pod-uid",
    "resources": {"hypervisor": "qemu", "vcpus": 1, "memory": "1Gi", "overlay": "1Gi"},
    "conditions": [READY, SCHEDULED],
}


@dataclass
class World:
    """Two Nodes with an agent each, a namespace, and the administrator who sets scenes."""

    plane: ControlPlane
    namespace: str
    here: str
    there: str
    agent: Bearer  # of the node ``here``
    unbound: Bearer  # the same account, with a token of no Node
    made: list[str] = field(default_factory=list)

    @property
    def admin(self) -> Admin:
        return self.plane.admin

    @property
    def collection(self) -> str:
        return f"{INSTANCES}/namespaces/{self.namespace}/instances"

    def instance(self, node: str | None, *finalizers: str, deleting: bool = False) -> str:
        """The path of a new Instance on ``node`` (None: not placed yet)."""
        name = f"i-{secrets.token_hex(4)}"
        path = f"{self.collection}/{name}"
        meta = {"name": name, "labels": {"app": "a"}, "finalizers": list(finalizers)}
        body = {"apiVersion": "torpor.dev/v1alpha1", "kind": "Instance", "metadata": meta}
        self.admin.create(self.collection, body | {"spec": {"image": "app:1"}})
        self.made.append(path)
        if node is not None:
            self.admin.patch(f"{path}/status", {"status": PLACED | {"nodeName": node}})
        if deleting:
            self.admin.delete(path)
        return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(control_plane: ControlPlane) -> Any:
    """The scene of this module; leaves nothing but the manifests."""
    apply_base(control_plane)
    admin, tail = control_plane.admin, secrets.token_hex(3)
    here, there, namespace = f"here-{tail}", f"there-{tail}", f"policy-{tail}"
    nodes = [admin.create(NODES, {"metadata": {"name": name}}) for name in (here, there)]
    admin.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
    every_right = bind(
        admin, "cluster-admin", f"Group:system:serviceaccounts:{SYSTEM}", f"every-right-{tail}"
    )
    paths = [f"{NODES}/{here}", f"{NODES}/{there}", every_right]
    result = World(
        control_plane,
        namespace,
        here,
        there,
        agent=Bearer(control_plane, token(control_plane, AGENT_ACCOUNT, nodes[0])),
        unbound=Bearer(control_plane, token(control_plane, AGENT_ACCOUNT)),
    )
    await _until_policies_act(result)
    yield result
    delete_all(control_plane, [*result.made, *paths, f"/api/v1/namespaces/{namespace}"])


async def _until_policies_act(world: World) -> None:
    elsewhere = world.instance(world.there)
    metadata: Object = {"metadata": {"labels": {"probe": "x"}}}
    dry = "?dryRun=All"
    await until_refused(lambda: world.agent("PATCH", f"{elsewhere}{dry}", metadata))
    await until_refused(lambda: world.agent("PATCH", f"{NODES}/{world.there}{dry}", metadata))
    lease = {"metadata": {"name": "probe"}}
    await until_refused(lambda: world.agent("POST", f"{LEASES}{dry}", lease))
    binding = bind(world.admin, "cluster-admin", "User:probe", f"probe-{world.here}")
    someone = user(world.plane, world.plane.directory / "probe", "probe")
    await until_refused(lambda: _create_reserved(someone, world.collection))
    delete_all(world.plane, [binding])


def _create_reserved(someone: Admin, collection: str) -> Answer:
    body = _instance_body("probe")
    body["metadata"]["labels"] = {"torpor.dev/probe": "x"}
    try:
        return Answer(201, someone.create(f"{collection}?dryRun=All", body))
    except Refused as refused:
        # RBAC's no does not count: the binding takes a moment too
        by_policy = "ValidatingAdmissionPolicy" in str(refused)
        return Answer(403 if by_policy else 201, {})


def _instance_body(name: str) -> Object:
    return {
        "apiVersion": "torpor.dev/v1alpha1",
        "kind": "Instance",
        "metadata": {"name": name},
        "spec": {"image": "app:1"},
    }


def refused(answer: Answer, *words: str) -> None:
    """The policy, nothing else, said no and used these words."""
    assert answer.code == 403, (answer.code, answer.message)
    assert "ValidatingAdmissionPolicy" in answer.message
    for word in words:
        assert word in answer.message


def allowed(answer: Answer) -> None:
    assert answer.allowed, (answer.code, answer.message)


def status(path: str) -> str:
    return f"{path}/status"


# --- whose Instances ---------------------------------------------------------------------------


def test_agent_may_write_status_of_its_own_nodes_instance(world: World) -> None:
    path = world.instance(world.here)
    said: Object = {
        "observedGeneration": 1,
        "state": "Running",
        "startedAt": TIME,
        "hypervisor": {"type": "qemu", "pid": 7},
        "conditions": [READY | {"status": "True", "reason": "Running"}, SCHEDULED],
    }
    allowed(world.agent("PATCH", status(path), {"status": said}))
    assert world.admin.get(path)["status"]["state"] == "Running"


def test_agent_may_not_write_status_of_another_nodes_instance(world: World) -> None:
    path = world.instance(world.there)
    answer = world.agent("PATCH", status(path), {"status": {"state": "Running"}})
    refused(answer, world.here, world.there, "only to those of its own node")


def test_agent_may_not_write_status_of_an_instance_on_no_node(world: World) -> None:
    path = world.instance(None)
    refused(world.agent("PATCH", status(path), {"status": {"state": "Running"}}), "on none")


def test_agent_may_not_take_an_instance_by_naming_its_own_node(world: World) -> None:
    for path in (world.instance(None), world.instance(world.there)):
        claim = {"status": {"nodeName": world.here, "epoch": 2}}
        refused(world.agent("PATCH", status(path), claim), "only to those of its own node")


def test_token_without_a_node_may_write_nothing(world: World) -> None:
    path = world.instance(world.here)
    answer = world.unbound("PATCH", status(path), {"status": {"state": "Running"}})
    refused(answer, "not bound to a Node")


def test_token_without_a_node_does_not_match_an_instance_without_a_node(world: World) -> None:
    path = world.instance(None)
    refused(world.unbound("PATCH", status(path), {"status": {"state": "Running"}}))


def test_agent_may_not_create_instances(world: World) -> None:
    answer = world.agent("POST", world.collection, _instance_body("mine"))
    refused(answer, "neither create nor delete")


def test_agent_may_not_delete_instances(world: World) -> None:
    path = world.instance(world.here)
    refused(world.agent("DELETE", path), "neither create nor delete")
    refused(world.agent("DELETE", world.collection), "neither create nor delete")
    assert world.admin.find(path) is not None


# --- which fields ------------------------------------------------------------------------------


def test_agent_may_not_change_spec(world: World) -> None:
    path = world.instance(world.here)
    body = {"spec": {"operatingMode": "Stopped"}}
    refused(world.agent("PATCH", path, body), "may not change spec")
    # through the subresource a spec is not refused but dropped
    allowed(world.agent("PATCH", status(path), body))
    assert world.admin.get(path)["spec"]["operatingMode"] == "Running"


@pytest.mark.parametrize(
    "metadata",
    [
        {"labels": {"app": "b"}},
        {"labels": {"app": None}},
        {"labels": {"more": "x"}},
        {"annotations": {"note": "x"}},
        {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]},
    ],
    ids=["label changed", "label removed", "label added", "annotation", "owner"],
)
def test_agent_may_not_change_metadata(world: World, metadata: Object) -> None:
    path = world.instance(world.here)
    refused(world.agent("PATCH", path, {"metadata": metadata}), "other than the finalizer")
    allowed(world.agent("PATCH", status(path), {"metadata": metadata}))  # dropped, as spec is
    assert world.admin.get(path)["metadata"]["labels"] == {"app": "a"}


@pytest.mark.parametrize(
    "change",
    [
        {"nodeName": "elsewhere", "epoch": 2},
        {"epoch": 2},
        {"reservation": "another"},
        {"reservation": None},
        {"resources": {"memory": "2Gi"}},
        {"resources": None},
        {"resources": {"diskBandwidth": "1Gi"}},
    ],
    ids=lambda change: "_".join(change) + ("_removed" if None in change.values() else ""),
)
def test_agent_may_not_change_what_the_operator_decides(world: World, change: Object) -> None:
    path = world.instance(world.here)
    answer = world.agent("PATCH", status(path), {"status": change})
    refused(answer, "status.id, nodeName, epoch, reservation or resources")


@pytest.fixture
def fork(world: World) -> str:
    """The path of a fork that was placed on ``here``."""
    path = world.instance(world.here)
    world.admin.patch(status(path), {"status": {"lineage": LINEAGE}})
    return path


def test_agent_may_say_what_sleeps_and_what_was_forked(world: World, fork: str) -> None:
    snapshot = {
        "takenAt": TIME, "size": "4Mi", "bytes": 4194304, "baseBytes": 4194304, "deltaBytes": 0,
        "hypervisor": "qemu 7.2.22",
    }  # fmt: skip
    forked = {"lineage": {"forkedAt": TIME}, "snapshot": snapshot, "state": "Standby"}
    allowed(world.agent("PATCH", status(fork), {"status": forked}))
    assert world.admin.get(fork)["status"]["lineage"] == LINEAGE | {"forkedAt": TIME}
    woken = {"snapshot": None, "state": "Running"}
    allowed(world.agent("PATCH", status(fork), {"status": woken}))
    assert "snapshot" not in world.admin.get(fork)["status"]


@pytest.mark.parametrize(
    "lineage",
    [{"parent": "mine"}, {"root": "mine"}, {"depth": 3}, None],
    ids=["parent", "root", "depth", "removed"],
)
def test_agent_may_not_change_where_a_fork_comes_from(
    world: World, fork: str, lineage: Object | None
) -> None:
    answer = world.agent("PATCH", status(fork), {"status": {"lineage": lineage}})
    assert answer.code == 422, "the schema refuses it to everybody"
    assert "status.lineage" in answer.message


def test_agent_may_not_make_a_fork_of_what_is_none(world: World) -> None:
    path = world.instance(world.here)
    answer = world.agent("PATCH", status(path), {"status": {"lineage": LINEAGE}})
    refused(answer, "not its parent, root or depth")


def test_agent_may_not_give_an_id(world: World) -> None:
    path = world.instance(None)
    first = {key: value for key, value in PLACED.items() if key != "id"}
    world.admin.patch(status(path), {"status": first | {"nodeName": world.here}})
    answer = world.agent("PATCH", status(path), {"status": {"id": "mine1"}})
    refused(answer, "status.id")


def test_agent_may_not_remove_the_status(world: World) -> None:
    path = world.instance(world.here)
    assert not world.agent("PATCH", status(path), {"status": None}).allowed
    assert world.admin.get(path)["status"]["nodeName"] == world.here


# --- Scheduled ---------------------------------------------------------------------------------


def test_agent_may_say_that_it_released_the_reservation(world: World) -> None:
    path = world.instance(world.here)
    allowed(world.agent("PATCH", status(path), {"status": {"conditions": [READY, RELEASED]}}))


def test_agent_may_copy_the_scheduled_condition_as_it_is(world: World) -> None:
    path = world.instance(world.here)
    ready = READY | {"status": "True", "reason": "Running"}
    allowed(world.agent("PATCH", status(path), {"status": {"conditions": [ready, SCHEDULED]}}))


@pytest.mark.parametrize(
    "conditions",
    [
        [READY],
        [READY, SCHEDULED | {"message": "changed"}],
        [READY, SCHEDULED | {"status": "False", "reason": "Evicting"}],
        [READY, SCHEDULED | {"status": "Unknown", "reason": "Released"}],
        [READY, SCHEDULED | {"reason": "Released"}],
    ],
    ids=["removed", "message", "other reason", "unknown", "released but true"],
)
def test_agent_may_not_say_anything_else_about_scheduled(
    world: World, conditions: list[Object]
) -> None:
    path = world.instance(world.here)
    answer = world.agent("PATCH", status(path), {"status": {"conditions": conditions}})
    refused(answer, "Scheduled to False with reason Released")


def test_agent_may_not_schedule_again_what_it_released(world: World) -> None:
    path = world.instance(world.here)
    allowed(world.agent("PATCH", status(path), {"status": {"conditions": [READY, RELEASED]}}))
    answer = world.agent("PATCH", status(path), {"status": {"conditions": [READY, SCHEDULED]}})
    refused(answer, "Scheduled")


# --- the finalizer -----------------------------------------------------------------------------


def finalizers(*left: str) -> Object:
    return {"metadata": {"finalizers": list(left)}}


def test_agent_may_remove_the_finalizer_of_an_instance_that_is_being_deleted(world: World) -> None:
    path = world.instance(world.here, FINALIZER, deleting=True)
    allowed(world.agent("PATCH", path, finalizers()))
    assert world.admin.find(path) is None


def test_agent_may_remove_its_finalizer_and_leave_the_others(world: World) -> None:
    path = world.instance(world.here, FINALIZER, OTHERS, deleting=True)
    allowed(world.agent("PATCH", path, finalizers(OTHERS)))


def test_agent_may_not_remove_the_finalizer_before_the_deletion(world: World) -> None:
    path = world.instance(world.here, FINALIZER)
    refused(world.agent("PATCH", path, finalizers()), "only while the Instance is being deleted")


@pytest.mark.parametrize("left", [[FINALIZER], []], ids=["the other", "both"])
def test_agent_may_not_remove_a_finalizer_of_others(world: World, left: list[str]) -> None:
    path = world.instance(world.here, FINALIZER, OTHERS, deleting=True)
    refused(world.agent("PATCH", path, finalizers(*left)), "only that one")


def test_agent_may_not_add_a_finalizer(world: World) -> None:
    path = world.instance(world.here)
    refused(world.agent("PATCH", path, finalizers(FINALIZER)), "finalizer")


def test_agent_may_not_remove_the_finalizer_of_another_nodes_instance(world: World) -> None:
    path = world.instance(world.there, FINALIZER, deleting=True)
    refused(world.agent("PATCH", path, finalizers()), "only to those of its own node")


def test_agent_may_not_change_metadata_while_it_removes_the_finalizer(world: World) -> None:
    path = world.instance(world.here, FINALIZER, OTHERS, deleting=True)
    body = {"metadata": {"finalizers": [OTHERS], "labels": {"app": "b"}}}
    refused(world.agent("PATCH", path, body), "other than the finalizer")


# --- Nodes and Leases --------------------------------------------------------------------------


def condition(kind: str) -> Object:
    said = {"type": kind, "status": "True", "reason": "Proven", "message": "booted a guest"}
    return {"status": {"conditions": [said]}}


def test_agent_may_set_its_condition_on_its_own_node(world: World) -> None:
    path = status(f"{NODES}/{world.here}")
    allowed(world.agent("PATCH", path, condition(CONDITION), patch="strategic"))
    again = {"status": {"conditions": [{"type": CONDITION, "status": "False"}]}}
    allowed(world.agent("PATCH", path, again, patch="strategic"))


def test_agent_may_not_set_its_condition_on_another_node(world: World) -> None:
    path = status(f"{NODES}/{world.there}")
    answer = world.agent("PATCH", path, condition(CONDITION), patch="strategic")
    refused(answer, "only to its own Node")


@pytest.mark.parametrize("kind", ["Ready", "MemoryPressure"])
def test_agent_may_not_set_another_condition(world: World, kind: str) -> None:
    path = status(f"{NODES}/{world.here}")
    answer = world.agent("PATCH", path, condition(kind), patch="strategic")
    refused(answer, "no condition of a Node but TorporKVM")


def test_agent_may_not_change_capacity(world: World) -> None:
    body = {"status": {"capacity": {"memory": "1Ti"}}}
    answer = world.agent("PATCH", status(f"{NODES}/{world.here}"), body, patch="strategic")
    refused(answer, "nothing in a Node's status but")


def test_agent_may_not_label_its_node(world: World) -> None:
    body = {"metadata": {"labels": {"torpor.dev/node": "true"}}}
    answer = world.agent("PATCH", status(f"{NODES}/{world.here}"), body, patch="strategic")
    refused(answer, "may not change a Node's labels")
    refused(world.agent("PATCH", f"{NODES}/{world.here}", body), "only to the status of a Node")


def test_agent_may_not_untaint_create_or_delete_nodes(world: World) -> None:
    path = f"{NODES}/{world.here}"
    refused(world.agent("PATCH", path, {"spec": {"unschedulable": True}}), "only to the status")
    refused(world.agent("POST", NODES, {"metadata": {"name": "mine"}}), "only to the status")
    refused(world.agent("DELETE", path), "only to the status")


def test_token_without_a_node_may_not_write_to_nodes(world: World) -> None:
    path = status(f"{NODES}/{world.here}")
    answer = world.unbound("PATCH", path, condition(CONDITION), patch="strategic")
    refused(answer, "only to its own Node")


def test_agent_may_keep_its_own_lease(world: World) -> None:
    name = node_lease(world.here)
    world.made.append(f"{LEASES}/{name}")
    spec: Object = {"holderIdentity": world.here, "leaseDurationSeconds": 40}
    allowed(world.agent("POST", LEASES, {"metadata": {"name": name}, "spec": spec}))
    allowed(world.agent("PATCH", f"{LEASES}/{name}", {"spec": {"leaseTransitions": 1}}))


@pytest.mark.parametrize("whose", ["another node's", "the operator's"])
def test_agent_may_not_hold_a_lease_that_is_not_its_own(world: World, whose: str) -> None:
    name = node_lease(world.there) if whose == "another node's" else "torpor-operator"
    refused(world.agent("POST", LEASES, {"metadata": {"name": name}}), "only its own Lease")


def test_agent_may_not_hold_a_lease_in_another_namespace(world: World) -> None:
    path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
    body = {"metadata": {"name": node_lease(world.here)}}
    refused(world.agent("POST", path, body), "only its own Lease")


# --- everybody else ----------------------------------------------------------------------------


@pytest.fixture
def alice(world: World, tmp_path: Path) -> Iterator[Callable[..., Admin]]:
    """A user with the role ``edit`` in the namespace, in any further groups."""
    name = f"alice-{secrets.token_hex(3)}"
    binding = bind(world.admin, "edit", f"User:{name}", name, world.namespace)
    yield lambda *groups: user(world.plane, tmp_path / "-".join(["u", *groups]), name, *groups)
    delete_all(world.plane, [binding])


def test_user_with_the_role_edit_owns_instances_but_not_their_status(
    world: World, alice: Callable[..., Admin]
) -> None:
    me, path = alice(), f"{world.collection}/of-alice"
    me.create(world.collection, _instance_body("of-alice"))
    me.patch(path, {"spec": {"operatingMode": "Stopped"}})
    with pytest.raises(Refused, match="cannot patch resource") as no:
        me.patch(f"{path}/status", {"status": {"state": "Running"}})
    assert no.value.code == 403
    me.delete(path)


def test_user_may_not_remove_the_finalizer(world: World, alice: Callable[..., Admin]) -> None:
    path = world.instance(world.here, FINALIZER, deleting=True)
    with pytest.raises(Refused, match="torpor:break-glass"):
        alice().patch(path, finalizers())
    assert world.admin.get(path)["metadata"]["finalizers"] == [FINALIZER]


def test_break_glass_group_may_remove_the_finalizer(
    world: World, alice: Callable[..., Admin]
) -> None:
    path = world.instance(world.here, FINALIZER, deleting=True)
    alice("torpor:break-glass").patch(path, finalizers())
    assert world.admin.find(path) is None


def test_operator_may_set_and_remove_the_finalizer(world: World) -> None:
    operator = Bearer(world.plane, token(world.plane, "torpor-operator"))
    path = world.instance(None)
    allowed(operator("PATCH", path, finalizers(FINALIZER)))
    allowed(operator("PATCH", path, finalizers()))
    placed = PLACED | {"nodeName": world.here, "conditions": [READY, SCHEDULED]}
    allowed(operator("PATCH", status(path), {"status": placed}))


@pytest.mark.parametrize("kind", ["labels", "annotations"])
def test_user_may_not_use_our_prefix(world: World, alice: Callable[..., Admin], kind: str) -> None:
    body = _instance_body("x")
    body["metadata"][kind] = {"torpor.dev/epoch": "7"}
    with pytest.raises(Refused, match="use a prefix of your own"):
        alice().create(world.collection, body)
    body["metadata"][kind] = {"example.com/epoch": "7"}
    alice().create(f"{world.collection}?dryRun=All", body)


def test_instances_in_kubernetes_own_namespaces_are_refused(world: World, tmp_path: Path) -> None:
    name = f"bob-{secrets.token_hex(3)}"
    binding = bind(world.admin, "admin", f"User:{name}", name, "kube-system")
    try:
        with pytest.raises(Refused, match="use another namespace"):
            user(world.plane, tmp_path, name).create(
                f"{INSTANCES}/namespaces/kube-system/instances", _instance_body("x")
            )
    finally:
        delete_all(world.plane, [binding])


# --- what RBAC alone gives -----------------------------------------------------------------------

AGENT = f"system:serviceaccount:{SYSTEM}:{AGENT_ACCOUNT}"
OPERATOR = f"system:serviceaccount:{SYSTEM}:torpor-operator"


@pytest.mark.parametrize(
    ("who", "verb", "resource", "may"),
    [
        (AGENT, "watch", "torpor.dev/instances", True),
        (AGENT, "patch", "torpor.dev/instances", True),
        (AGENT, "patch", "torpor.dev/instances/status", True),
        (AGENT, "patch", "nodes/status", True),
        (AGENT, "get", "pods", True),
        (AGENT, "create", "events", True),
        (AGENT, "update", "coordination.k8s.io/leases", True),
        (AGENT, "create", "torpor.dev/instances", False),
        (AGENT, "delete", "torpor.dev/instances", False),
        (AGENT, "patch", "nodes", False),
        (AGENT, "create", "pods", False),
        (AGENT, "delete", "pods", False),
        (AGENT, "get", "secrets", False),
        (AGENT, "get", "namespaces", False),  # kube-system only, by name
        (AGENT, "list", "namespaces", False),
        (AGENT, "create", "serviceaccounts/token", False),
        (OPERATOR, "watch", "torpor.dev/instances", True),
        (OPERATOR, "patch", "torpor.dev/instances/status", True),
        (OPERATOR, "create", "pods", True),
        (OPERATOR, "delete", "pods", True),
        (OPERATOR, "update", "coordination.k8s.io/leases", True),
        (OPERATOR, "create", "torpor.dev/instances", False),
        (OPERATOR, "delete", "torpor.dev/instances", False),
        (OPERATOR, "patch", "nodes", False),
        (OPERATOR, "get", "secrets", False),
        (OPERATOR, "create", "pods/exec", False),
        (OPERATOR, "patch", "rbac.authorization.k8s.io/clusterroles", False),
    ],
)
def test_rbac_alone(world: World, who: str, verb: str, resource: str, may: bool) -> None:
    group, _, rest = (
        resource.partition("/") if "." in resource.split("/")[0] else ("", "", resource)
    )
    plural, _, sub = rest.partition("/")
    asked = {
        "group": group, "resource": plural, "subresource": sub, "verb": verb, "namespace": SYSTEM,
    }  # fmt: skip
    # asked for the user alone, without the group that has every right in this module
    answer = world.admin.create(
        REVIEWS,
        {"spec": {"user": who, "resourceAttributes": asked}},
    )
    assert answer["status"]["allowed"] is may


def test_full_installation_is_valid_and_the_operator_passes_pod_security(world: World) -> None:
    """Deployment and DaemonSet beside the base; a dry run, for there is no kubelet here."""
    command = [str(binaries.find()["kubectl"]), f"--kubeconfig={world.plane.kubeconfig}", "apply"]
    command += ["--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict"]
    done = subprocess.run(
        [*command, "-k", str(ROOT / "manifests" / "default")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "daemonset.apps/torpor-node" in done.stdout
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    world.admin.patch(f"/api/v1/namespaces/{world.namespace}", {"metadata": {"labels": restricted}})
    template = yaml.safe_load((ROOT / "manifests" / "default" / "operator.yaml").read_text())
    pod = template["spec"]["template"]
    pod["metadata"]["name"] = "operator"
    pod["spec"]["serviceAccountName"] = "default"
    world.admin.create(f"/api/v1/namespaces/{world.namespace}/pods?dryRun=All", pod)
