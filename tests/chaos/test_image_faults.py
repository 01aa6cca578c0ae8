"""Images that cannot be had: the reason stands on the Instance, and nothing is started."""

import socket
from collections.abc import Iterator

import pytest

from tests.agentkit import Rig
from tests.registry import Registry, build_image, missing, running_registry, tar

A = "a"

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A real registry with one image."""
    place = tmp_path_factory.mktemp("registry")
    with running_registry(place) as running:
        running.push(build_image(place, tar(("app", b"x")), entrypoint=["/app"]), "app:1")
        yield running


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_image_is_pulled_and_its_digest_said(rig: Rig, registry: Registry) -> None:
    rig.restart(insecure_registries=(registry.address,))
    uid = await rig.run(A, image=f"{registry.address}/app:1")
    status = rig.world.get(A)["status"]
    assert status["image"]["digest"] == registry.digest("app:1")
    assert rig.site.starts(uid) == 1


async def test_image_that_is_not_there_is_said_and_the_disk_is_kept(
    rig: Rig, registry: Registry
) -> None:
    rig.restart(insecure_registries=(registry.address,))
    uid = rig.world.create(A, image=f"{registry.address}/app:none")
    ready = await rig.world.until_reason(A, "ImageNotFound")
    assert "app:none" in ready["message"]
    assert ready["status"] == "False"
    assert rig.world.state(A) == "Stopped"
    assert rig.site.vmm(uid) is None
    await rig.world.until(A, "Stopped")
    await rig.world.until_gone(A)
    assert rig.left() == []


async def test_registry_that_does_not_answer_is_said_and_is_not_stalled(rig: Rig) -> None:
    address = f"127.0.0.1:{closed_port()}"
    rig.restart(insecure_registries=(address,))
    uid = rig.world.create(A, image=f"{address}/app:1")
    ready = await rig.world.until_reason(A, "RegistryUnreachable")
    assert address in ready["message"]
    assert rig.world.condition(A, "Stalled") == {}, "a registry may come back"
    assert rig.site.vmm(uid) is None
    await rig.world.until_gone(A)
    assert rig.left() == []
