"""What the operator keeps of Instances: the newest, in few bytes, by name and by source."""

import json
import tracemalloc
from typing import Any

from controller.operator.known import Known
from tests.unit.operator.rig import condition

Object = dict[str, Any]


def instance(name: str, uid: str, at: int = 1, of: str | None = None, **status: Any) -> Object:
    origin: Object = {"forkFrom": {"name": of}} if of else {"image": "app:1"}
    return {
        "metadata": {"name": name, "namespace": "ns", "uid": uid, "resourceVersion": str(at)},
        "spec": origin,
        "status": status,
    }


def known(*objects: Object) -> Known:
    made = Known()
    for obj in objects:
        made.put(obj)
    return made


def uid_of(found: Object | None) -> str | None:
    return None if found is None else found["metadata"]["uid"]


def test_older_object_is_not_kept() -> None:
    objects = known(instance("web", "u1", 5))
    assert not objects.put(instance("web", "u1", 5))
    assert not objects.put(instance("web", "u1", 4))
    assert objects.put(instance("web", "u1", 6))
    assert objects["u1"]["metadata"]["resourceVersion"] == "6"


def test_name_means_the_newest_that_bears_it() -> None:
    objects = known(instance("web", "old", 5), instance("web", "new", 9))
    assert uid_of(objects.named("ns", "web")) == "new"
    objects.put(instance("web", "late", 7))  # told of out of order
    assert uid_of(objects.named("ns", "web")) == "new"
    objects.drop("old")
    assert uid_of(objects.named("ns", "web")) == "new"
    objects.drop("new")
    assert objects.named("ns", "web") is None
    assert objects.named("other", "web") is None


def test_forks_are_found_by_the_name_they_wait_for() -> None:
    source = instance("web", "u1")
    objects = known(source, instance("a", "u2", of="web"), instance("b", "u3", of="web"))
    assert set(objects.forks_waiting_for(source)) == {"u2", "u3"}
    objects.put(instance("a", "u2", 2, of="web", nodeName="n1"))  # placed
    assert objects.forks_waiting_for(source) == ("u3",)
    objects.drop("u3")
    assert objects.forks_waiting_for(source) == ()


def test_names_are_of_one_namespace() -> None:
    elsewhere = instance("web", "u9")
    elsewhere["metadata"]["namespace"] = "other"
    objects = known(elsewhere, instance("a", "u2", of="web"))
    assert objects.forks_waiting_for(elsewhere) == ()
    assert objects.named("ns", "web") is None


def test_circle_is_seen_by_names() -> None:
    objects = known(instance("a", "u1", of="b"), instance("b", "u2", of="a"))
    assert objects.circle(objects["u1"]) == ("a", "b")
    objects.drop("u2")
    assert objects.circle(objects["u1"]) == ()


def test_nothing_is_left_of_what_was_dropped() -> None:
    objects = known(instance("web", "u1"), instance("a", "u2", of="web"))
    assert uid_of(objects.drop("u1")) == "u1"
    assert objects.drop("u1") is None
    objects.drop("u2")
    assert (len(objects), objects._names, objects._waiting) == (0, {}, {})


def test_thousands_stay_small() -> None:
    """The operator may take 20 KiB for an Instance; these are the objects and their indexes."""
    count = 2000
    conditions = [condition(kind, "True", "Running") for kind in ("Ready", "Scheduled")]
    texts = [
        json.dumps(
            instance(
                f"fork-{n:05}", f"{n:08}-0c5d-4f7a-9a43-2b8f0e6d1c11", of="web",
                conditions=conditions, id=f"c{n:023}", state="Stopped",
            )
        )
        for n in range(count)
    ]  # fmt: skip
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        objects = Known()
        for text in texts:
            objects.put(json.loads(text))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(objects) == count
    assert (after - before) / count < 6 * 1024
