"""What comes in says only "look again", and what was asked in the meantime counts."""

import contextlib
import uuid
from typing import Any

from controller.core import wish
from controller.kube.workqueue import QueueClosed, WorkQueue
from controller.node.intake import Intake
from controller.vmm.driver import EventKind

UID = str(uuid.UUID(int=1))


class Reflector:
    """Objects by UID, without a watch."""

    def __init__(self, *objects: dict[str, Any]) -> None:
        self.objects = {obj["metadata"]["uid"]: obj for obj in objects}

    def get(self, uid: str) -> dict[str, Any] | None:
        return self.objects.get(uid)

    def items(self) -> list[tuple[str, dict[str, Any]]]:
        return list(self.objects.items())


def instance(uid: str = UID, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"uid": uid, "namespace": "default", "name": "a", "generation": 1},
        "spec": {"image": "registry.example/app:1", "operatingMode": "Running", **spec},
        "status": {"epoch": 1},
    }


def intake(*objects: dict[str, Any]) -> Intake:
    made = Intake.__new__(Intake)
    made.queue = WorkQueue()
    made.reflector = Reflector(*objects)  # type: ignore[assignment]
    return made


async def queued(made: Intake) -> set[str]:
    found = set()
    made.queue.shut_down()
    with contextlib.suppress(QueueClosed):
        while True:
            found.add(await made.queue.get())
    return found


async def test_news_of_any_kind_queues_its_instance_once() -> None:
    made = intake(instance())
    made.news(UID)
    made.vmm_event(UID, EventKind.DIED)
    made.vmm_event(UID, EventKind.CHANGED)
    assert await queued(made) == {UID}


async def test_news_of_an_image_queues_only_who_waits_for_it() -> None:
    other = str(uuid.UUID(int=2))
    made = intake(instance(), instance(other, image="registry.example/other:1"))
    made.image_news("registry.example/app:1")
    assert await queued(made) == {UID}


def test_only_another_wish_moves_on() -> None:
    before = instance()
    asked = wish.desired(before)
    assert not intake(before).moved_on(UID, asked)
    later = {**before, "metadata": {**before["metadata"], "resourceVersion": "9", "labels": {}}}
    assert not intake(later).moved_on(UID, asked)
    assert intake(instance(operatingMode="Stopped")).moved_on(UID, asked)
    assert intake(instance(operatingMode="Nonsense")).moved_on(UID, asked)
    assert intake().moved_on(UID, asked)
