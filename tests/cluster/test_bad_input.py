"""Bad input: each row is a claim that the API server refuses it, and says which field and why.

One object is good (``GOOD``); each row changes one thing in it. A refusal must name the field and
hold the words of the remedy. ``ACCEPTED`` are the neighbours of the bounds, which must pass:
without them a schema that refuses everything would look right. Nothing is stored (``dryRun``),
except what the rows about changes start from.
"""

import copy
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from controller.core import wish
from controller.images.reference import parse
from controller.local.admin import Refused
from controller.local.controlplane import ControlPlane
from controller.operator import defaults
from controller.settings import Defaults
from tests.identities import INSTANCES, Object
from tests.waiting import until

GOOD: Object = {
    "apiVersion": "torpor.dev/v1alpha1",
    "kind": "Instance",
    "metadata": {"name": "good"},
    "spec": {
        "image": "registry:5000/team/app:1",
        "hypervisor": "qemu",
        "vcpus": 2,
        "memory": {"size": "1Gi"},
        "overlay": {"size": "10Gi"},
        "disk": {"bandwidth": "100Mi"},
        "command": ["/bin/app"],
        "args": ["--verbose"],
        "env": [{"name": "A", "value": "b"}],
        "nodeName": "n1",
        "nodeSelector": {"zone": "a"},
        "affinity": {"nodeAffinity": {}},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "priorityClassName": "high",
    },
}
REMOVED: Any = object()
HEX64 = "0123456789abcdef" * 4
REQUIREMENT = {"key": "zone", "operator": "In", "values": ["a"]}


def changed(path: str, value: Any) -> Object:
    """GOOD with the field at ``path`` set, or removed."""
    result = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    node: Any = result
    for parent in parents:
        node = node[int(parent)] if isinstance(node, list) else node.setdefault(parent, {})
    if value is REMOVED:
        del node[last]
    elif isinstance(node, list):
        node[int(last)] = value
    else:
        node[last] = value
    return result


def row(claim: str, path: str, value: Any, *words: str) -> Any:
    """A refused change: the answer must hold the path's last part and all ``words``."""
    return pytest.param(path, value, words, id=claim.replace(" ", "_"))


LABEL = "lower"  # "lower-case" is our word, "lowercase RFC 1123" the API server's
REFERENCE = "OCI reference"
NAMES = [
    row("empty name", "metadata.name", "", "name", "required"),
    row("name of 64 characters", "metadata.name", "a" * 64, "DNS label", "63"),
    row("upper case name", "metadata.name", "Web", LABEL),
    row("name with underscore", "metadata.name", "a_b", LABEL),
    row("name that starts with a dash", "metadata.name", "-a", LABEL),
    row("name that ends with a dash", "metadata.name", "a-", LABEL),
    row("name with a dot", "metadata.name", "a.b", "DNS label"),
    row("name of dots", "metadata.name", "..", "name"),
    row("name with a slash", "metadata.name", "a/b", "name"),
    row("unicode name", "metadata.name", "bücher", LABEL),
    row(
        "annotations of 1 MiB", "metadata.annotations", {"a": "x" * 2**20}, "annotations", "262144"
    ),
]
IMAGES = [
    row("no image", "spec.image", REMOVED, "exactly one of image and forkFrom"),
    row("empty image", "spec.image", "", "at least 1"),
    row("image with a space", "spec.image", "a b", REFERENCE),
    row("image with a NUL", "spec.image", "a\0b", REFERENCE),
    row("image with a newline", "spec.image", "app:1\n", REFERENCE),
    row("image of 513 characters", "spec.image", "a" * 513, "512"),
    row("upper case repository", "spec.image", "reg:5000/App", REFERENCE),
    row("upper case first part", "spec.image", "App/app", REFERENCE),
    row("image that is a colon", "spec.image", ":", REFERENCE),
    row("image with an empty tag", "spec.image", "app:", REFERENCE),
    row("image with a bad tag", "spec.image", "app:-1", REFERENCE),
    row("tag of 129 characters", "spec.image", "app:" + "a" * 129, REFERENCE),
    row("image with two digests", "spec.image", f"a@sha256:{HEX64}@sha256:{HEX64}", REFERENCE),
    row("short digest", "spec.image", "app@sha256:0123", REFERENCE),
    row("digest that is not hex", "spec.image", "app@sha256:" + "g" * 64, REFERENCE),
    row("sha512 digest", "spec.image", "app@sha512:" + HEX64 * 2, REFERENCE),
    row("image path upwards", "spec.image", "../x", REFERENCE),
    row("image path upwards inside", "spec.image", "reg/../x", REFERENCE),
    row("absolute image path", "spec.image", "/etc/passwd", REFERENCE),
    row("image as a file", "spec.image", "file:app", "registry"),
    row("image as an archive", "spec.image", "oci-archive:app", "registry"),
    row("image of a daemon", "spec.image", "docker-daemon:app:1", REFERENCE),
    row("image as an URL", "spec.image", "https://reg/app", REFERENCE),
    row("image with skopeo's scheme", "spec.image", "docker://reg/app", REFERENCE),
    row("image with a user", "spec.image", "me:secret@reg/app", REFERENCE),
    row("registry port 0", "spec.image", "reg:0/app", REFERENCE),
    row("registry port 70000", "spec.image", "reg:70000/app", REFERENCE),
    row("image that is a number", "spec.image", 7, "string"),
]
SIZE = "whole multiple of 1Mi"
BAD_SIZES = {
    "zero": 0, "negative": -1, "negative text": "-1Gi", "half a byte": "0.5", "milli": "1m",
    "above int64": "16Ei", "exponent": "1e30", "no number": "abc", "empty": "", "spaced": " 1Gi",
    "no whole MiB": "1048577", "decimal megabytes": "100M", "wrong suffix": "1GiB",
    "small suffix": "1gi", "63Mi": "63Mi", "fraction": "64.5Mi",
}  # fmt: skip
QUANTITIES = [
    *[row(f"memory {k}", "spec.memory.size", v, SIZE) for k, v in BAD_SIZES.items()],
    *[row(f"overlay {k}", "spec.overlay.size", v, SIZE) for k, v in BAD_SIZES.items()],
    row("memory above 4Ti", "spec.memory.size", "5Ti", "64Mi to 4Ti"),
    row("overlay above 16Ti", "spec.overlay.size", "17Ti", "64Mi to 16Ti"),
    row("memory of 33 characters", "spec.memory.size", "1" * 33, "32"),
    row("memory as a float", "spec.memory.size", 1.5, "integer"),
    row("memory without size", "spec.memory", {}, "size", "Required"),
    row("overlay without size", "spec.overlay", {}, "size", "Required"),
    row("memory that is a text", "spec.memory", "1Gi", "object"),
    row("no vcpu", "spec.vcpus", 0, "greater than or equal to 1"),
    row("negative vcpus", "spec.vcpus", -1, "greater than or equal to 1"),
    row("half a vcpu", "spec.vcpus", 1.5, "integer"),
    row("vcpus as a text", "spec.vcpus", "2", "integer"),
    row("65 vcpus", "spec.vcpus", 65, "less than or equal to 64"),
    row("negative bandwidth", "spec.disk.bandwidth", -1, "0 (automatic)"),
    row("bandwidth of a byte", "spec.disk.bandwidth", "1", "64Ki to 1Ti"),
    row("bandwidth in MBps", "spec.disk.bandwidth", "10MBps", "bytes per second"),
    row("bandwidth above int64", "spec.disk.bandwidth", "16Ei", "bytes per second"),
    row("bandwidth above 1Ti", "spec.disk.bandwidth", "2Ti", "64Ki to 1Ti"),
    row("fraction of bandwidth", "spec.disk.bandwidth", 0.5, "integer"),
    row("negative stop timeout", "spec.stopTimeoutSeconds", -1, "greater than or equal to 0"),
    row(
        "stop timeout above an hour", "spec.stopTimeoutSeconds", 3601, "less than or equal to 3600"
    ),
    row("endless stop timeout", "spec.stopTimeoutSeconds", 10**9, "less than or equal to 3600"),
    row("stop timeout with a unit", "spec.stopTimeoutSeconds", "5s", "integer"),
]
ENV_NAME = "letters, digits and _"
TOO_MUCH = "128 KiB"
WORKLOAD = [
    row("env without a name", "spec.env.0", {"value": "b"}, "name", "Required"),
    row("env with an empty name", "spec.env.0.name", "", "at least 1"),
    row("env name with =", "spec.env.0.name", "A=B", ENV_NAME),
    row("env name with a NUL", "spec.env.0.name", "A\0", ENV_NAME),
    row("env name with a newline", "spec.env.0.name", "A\n", ENV_NAME),
    row("env name with a dash", "spec.env.0.name", "A-B", ENV_NAME),
    row("env name that starts with a digit", "spec.env.0.name", "1A", ENV_NAME),
    row("env name of 4 KiB", "spec.env.0.name", "A" * 4096, "256"),
    row("env name of ours", "spec.env.0.name", "TORPOR_NONCE", "reserved"),
    row("duplicate env name", "spec.env", [{"name": "A", "value": "b"}] * 2, "Duplicate"),
    row("env without a value", "spec.env.0", {"name": "A"}, "value", "Required"),
    row("env value from elsewhere", "spec.env.0.valueFrom", {}, "unknown field"),
    row("env value with a NUL", "spec.env.0.value", "a\0b", "NUL"),
    row("env value of 1 MiB", "spec.env.0.value", "x" * 2**20, "32768"),
    row("env value that is a number", "spec.env.0.value", 7, "string"),
    row(
        "257 env variables",
        "spec.env",
        [{"name": f"A{n}", "value": ""} for n in range(257)],
        "256",
    ),
    row(
        "env of 150 KiB in all",
        "spec.env",
        [{"name": f"A{n}", "value": "x" * 30_000} for n in range(5)],
        TOO_MUCH,
        "into the image",
    ),
    row(
        "env of 150 KiB in bytes, fewer in characters",
        "spec.env",
        [{"name": f"A{n}", "value": "ü" * 30_000} for n in range(3)],
        TOO_MUCH,
    ),
    row("257 arguments", "spec.args", ["a"] * 257, "256"),
    row("257 parts of the command", "spec.command", ["a"] * 257, "256"),
    row("argument of 32769 characters", "spec.args.0", "x" * 32769, "32768"),
    row("argument with a NUL", "spec.args.0", "a\0", "NUL"),
    row("argument that is a number", "spec.args.0", 7, "string"),
    row("program with an empty name", "spec.command.0", "", "image's entrypoint"),
    row("command that is a text", "spec.command", "/bin/app -v", "array"),
]


def test_arguments_and_command_are_bounded_together(offer: Any) -> None:
    spec = GOOD["spec"] | {"command": ["x" * 30_000] * 3, "args": ["x" * 30_000] * 2}
    with pytest.raises(Refused) as refused:
        offer(GOOD | {"spec": spec})
    assert "command and args may have 128 KiB together" in str(refused.value)


CHOICES = [
    row("unknown hypervisor", "spec.hypervisor", "xen", '"qemu"'),
    row("hypervisor in upper case", "spec.hypervisor", "QEMU", '"qemu"'),
    row("empty hypervisor", "spec.hypervisor", "", '"qemu"'),
    row("a VMM without a guest", "spec.hypervisor", "hollow", '"qemu"'),
    row("unknown operating mode", "spec.operatingMode", "Hibernated", '"Running", "Paused"'),
    row("operating mode in lower case", "spec.operatingMode", "running", '"Running", "Paused"'),
    row("empty operating mode", "spec.operatingMode", "", '"Running", "Paused"'),
    row("unknown restart policy", "spec.restartPolicy", "always", '"Never", "OnFailure"'),
    row("arguments for the kernel", "spec.kernelArgs", "init=/bin/sh", "unknown field"),
    row("flags for the VMM", "spec.qemuArgs", ["-monitor"], "unknown field"),
    row("a path of the host", "spec.hostPath", "/", "unknown field"),
    row("a field of a later release", "spec.gpu", {"profile": "a"}, "unknown field"),
    row("a typo", "spec.memory.sise", "1Gi", "unknown field"),
    row("no spec", "spec", REMOVED, "Required"),
]
PLACE = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"
PLACEMENT = [
    row("node name with a slash", "spec.nodeName", "n/1", "should match"),
    row("empty node name", "spec.nodeName", "", "at least 1"),
    row("node name of 254 characters", "spec.nodeName", "n" * 254, "253"),
    row("33 node labels", "spec.nodeSelector", {f"a{n}": "b" for n in range(33)}, "32"),
    row("node label with a long name", "spec.nodeSelector", {"a" * 318: "b"}, "317"),
    row("node label with a long value", "spec.nodeSelector.zone", "a" * 64, "63"),
    row("node label that is a number", "spec.nodeSelector.zone", 7, "string"),
    row("33 tolerations", "spec.tolerations", [{"operator": "Exists"}] * 33, "32"),
    row("toleration of nothing", "spec.tolerations.0", {}, "operator: Exists"),
    row(
        "toleration of everything with a value",
        "spec.tolerations.0",
        {"operator": "Exists", "value": "a"},
        "remove value",
    ),
    row("toleration operator", "spec.tolerations.0.operator", "In", '"Exists"'),
    row("toleration effect", "spec.tolerations.0.effect", "Evict", '"NoSchedule"'),
    row("toleration for a while", "spec.tolerations.0.tolerationSeconds", 5, "NoExecute"),
    row("node affinity without terms", PLACE, {}, "nodeSelectorTerms", "Required"),
    row("node affinity with no term", PLACE, {"nodeSelectorTerms": []}, "at least 1"),
    row(
        "node affinity operator",
        PLACE,
        {"nodeSelectorTerms": [{"matchExpressions": [REQUIREMENT | {"operator": "Like"}]}]},
        '"In"',
    ),
    row(
        "node affinity typo",
        PLACE,
        {"nodeSelectorTerms": [{"matchExpresions": [REQUIREMENT]}]},
        "unknown field",
    ),
    row(
        "weight of 101",
        "spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution",
        [{"weight": 101, "preference": {"matchExpressions": [REQUIREMENT]}}],
        "weight",
        "less than or equal to 100",
    ),
    row(
        "pod affinity without topology",
        "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution",
        [{"labelSelector": {}}],
        "topologyKey",
        "Required",
    ),
    row("priority class with a space", "spec.priorityClassName", "a b", "should match"),
]
ACCEPTED = {
    "name of 63 characters": ("metadata.name", "a" * 63),
    "name of digits": ("metadata.name", "0"),
    "image without tag": ("spec.image", "app"),
    "image with a tag and a digest": ("spec.image", f"reg.example:65535/a/b-c:T_1@sha256:{HEX64}"),
    "image of an address": ("spec.image", "[::1]:5000/app"),
    "image of the name docker": ("spec.image", "docker:24-dind"),
    "memory of 64Mi": ("spec.memory.size", "64Mi"),
    "memory as a number": ("spec.memory.size", 2**30),
    "memory of 4Ti": ("spec.memory.size", "4Ti"),
    "overlay of 16Ti": ("spec.overlay.size", "16Ti"),
    "one vcpu": ("spec.vcpus", 1),
    "64 vcpus": ("spec.vcpus", 64),
    "automatic bandwidth": ("spec.disk.bandwidth", 0),
    "bandwidth of 64Ki": ("spec.disk.bandwidth", "64Ki"),
    "no time to stop": ("spec.stopTimeoutSeconds", 0),
    "an hour to stop": ("spec.stopTimeoutSeconds", 3600),
    "PATH": ("spec.env.0.name", "PATH"),
    "LD_PRELOAD": ("spec.env.0.name", "LD_PRELOAD"),
    "empty env value": ("spec.env.0.value", ""),
    "env value of 32 KiB": ("spec.env.0.value", "x" * 32768),
    "env value with newlines and quotes": ("spec.env.0.value", "a\n\"'\\$é\t"),
    "256 env variables": ("spec.env", [{"name": f"A{n}", "value": "b"} for n in range(256)]),
    "no command": ("spec.command", []),
    "empty argument": ("spec.args.0", ""),
    "256 arguments": ("spec.args", ["a"] * 256),
    "first mode Paused": ("spec.operatingMode", "Paused"),
    "first mode Standby": ("spec.operatingMode", "Standby"),
    "first mode Stopped": ("spec.operatingMode", "Stopped"),
    "mode null is the default": ("spec.operatingMode", None),
    "no affinity": ("spec.affinity", REMOVED),
    "toleration of everything": ("spec.tolerations.0", {"operator": "Exists"}),
    "node affinity": (PLACE, {"nodeSelectorTerms": [{"matchExpressions": [REQUIREMENT]}]}),
}
IMMUTABLE: dict[str, Any] = {
    "image": "other:2",
    "hypervisor": None,  # the enum has one value: it can only be removed
    "vcpus": 3,
    "memory": {"size": "2Gi"},
    "overlay": {"size": "5Gi"},
    "disk": {"bandwidth": "200Mi"},
    "nodeName": "n2",
    "nodeSelector": {"zone": "b"},
    "affinity": {"podAffinity": {}},
    "tolerations": [],
    "priorityClassName": "low",
}
MUTABLE = {
    "operatingMode": "Stopped",
    "restartPolicy": "Always",
    "stopTimeoutSeconds": 30,
    "command": ["/bin/other"],
    "args": [],
    "env": [{"name": "B", "value": "c"}],
}


@pytest.fixture(scope="module")
def collection(control_plane: ControlPlane) -> Iterator[str]:
    """The Instances of a namespace of this module."""
    name = f"bad-input-{secrets.token_hex(3)}"
    control_plane.admin.create("/api/v1/namespaces", {"metadata": {"name": name}})
    yield f"{INSTANCES}/namespaces/{name}/instances"
    control_plane.admin.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
def offer(control_plane: ControlPlane, collection: str) -> Any:
    """Offer an object for creation; it is validated and not stored."""
    query = "dryRun=All&fieldValidation=Strict"
    return lambda body: control_plane.admin.create(f"{collection}?{query}", body)


@pytest.fixture(scope="module")
def stored(control_plane: ControlPlane, collection: str) -> str:
    """The path of a stored GOOD."""
    control_plane.admin.create(collection, GOOD)
    return f"{collection}/good"


@pytest.fixture(scope="module")
def bare(control_plane: ControlPlane, collection: str) -> str:
    """The path of a stored object that has nothing but an image."""
    body = GOOD | {"metadata": {"name": "bare"}, "spec": {"image": "app"}}
    control_plane.admin.create(collection, body)
    return f"{collection}/bare"


def named(path: str, message: str) -> bool:
    """Whether the message names the field, as a path or, for lists, by its last word."""
    words = [part for part in path.split(".") if not part.isdigit()]
    return words[-1] in message or ".".join(words[:2]) in message


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [*NAMES, *IMAGES, *QUANTITIES, *WORKLOAD, *CHOICES, *PLACEMENT],
)
def test_refused(offer: Any, path: str, value: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(Refused) as refused:
        offer(changed(path, value))
    message = str(refused.value)
    assert refused.value.code in (400, 422)
    assert named(path, message), message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("path", "value"), ACCEPTED.values(), ids=[claim.replace(" ", "_") for claim in ACCEPTED]
)
def test_accepted(offer: Any, path: str, value: Any) -> None:
    assert_readable(offer(changed(path, value)))


def assert_readable(stored: Object) -> None:
    """What the API server takes, the processes behind it can read."""
    assert wish.desired(stored).generation == 1
    parse(stored["spec"]["image"])
    settled = defaults.hardware(stored["spec"], Defaults())
    assert settled.memory % 2**20 == 0
    assert settled.overlay % 2**20 == 0


def test_good_object_is_accepted(offer: Any) -> None:
    assert_readable(offer(GOOD))


def test_long_generated_name_is_cut_to_a_valid_one(offer: Any) -> None:
    body = GOOD | {"metadata": {"generateName": "a" * 253}}
    assert len(offer(body)["metadata"]["name"]) <= 63


@pytest.mark.parametrize("field", IMMUTABLE)
def test_change_is_refused(control_plane: ControlPlane, stored: str, field: str) -> None:
    refuse_change(control_plane, stored, {field: IMMUTABLE[field]})


@pytest.mark.parametrize("field", sorted(set(IMMUTABLE) - {"image"}))
def test_removal_is_refused(control_plane: ControlPlane, stored: str, field: str) -> None:
    refuse_change(control_plane, stored, {field: None})


@pytest.mark.parametrize("field", sorted(set(IMMUTABLE) - {"image"}))
def test_later_addition_is_refused(control_plane: ControlPlane, bare: str, field: str) -> None:
    refuse_change(control_plane, bare, {field: GOOD["spec"][field]})


def refuse_change(plane: ControlPlane, path: str, spec: Object) -> None:
    (field,) = spec
    with pytest.raises(Refused) as refused:
        plane.admin.patch(f"{path}?dryRun=All&fieldValidation=Strict", {"spec": spec})
    message = str(refused.value)
    assert f"spec.{field}" in message
    assert "immutable" in message
    assert "create a new Instance" in message


@pytest.mark.parametrize("field", MUTABLE)
def test_change_is_accepted(control_plane: ControlPlane, stored: str, field: str) -> None:
    answer = control_plane.admin.patch(f"{stored}?dryRun=All", {"spec": {field: MUTABLE[field]}})
    assert answer["spec"][field] == MUTABLE[field]


@pytest.mark.parametrize("field", ["command", "args", "env"])
def test_removal_of_what_acts_at_the_next_boot_is_accepted(
    control_plane: ControlPlane, stored: str, field: str
) -> None:
    answer = control_plane.admin.patch(f"{stored}?dryRun=All", {"spec": {field: None}})
    assert field not in answer["spec"]


@pytest.mark.parametrize(
    ("field", "same"),
    [("memory", {"size": "1024Mi"}), ("memory", {"size": 2**30}), ("overlay", {"size": "10240Mi"})],
)
def test_same_size_written_another_way_is_no_change(
    control_plane: ControlPlane, stored: str, field: str, same: Object
) -> None:
    control_plane.admin.patch(f"{stored}?dryRun=All", {"spec": {field: same}})


async def test_terminating_namespace_takes_no_instance(control_plane: ControlPlane) -> None:
    admin, name = control_plane.admin, f"ending-{secrets.token_hex(3)}"
    admin.create("/api/v1/namespaces", {"metadata": {"name": name}})
    holder = f"/api/v1/namespaces/{name}/configmaps"
    admin.create(holder, {"metadata": {"name": "holder", "finalizers": ["test.example/hold"]}})
    admin.delete(f"/api/v1/namespaces/{name}")

    def said() -> str:
        try:
            admin.create(f"{INSTANCES}/namespaces/{name}/instances?dryRun=All", GOOD)
        except Refused as refused:
            return str(refused)
        return ""  # admission learns of it a moment later

    await until(said)
    assert "because it is being terminated" in said()
    admin.patch(f"{holder}/holder", {"metadata": {"finalizers": None}})
