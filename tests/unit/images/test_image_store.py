"""The store's own bookkeeping: what is kept, what goes, what a restart finds. No registry here."""

import asyncio
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from controller.core.backoff import Backoff
from controller.images.image import Failed, Image, ImageConfig, Pulling, Ready
from controller.images.shelf import Shelf
from controller.images.store import ImageStore
from controller.images.tool import Tools
from tests.waiting import until

CONFIG = ImageConfig(("/bin/sh",), ("-c", "x\ny"), (("A", "b=c"), ("B", "")), "1:2", "/srv")


def digest(n: int) -> str:
    return f"sha256:{n:064x}"


def shelve(root: Path, n: int, size: int = 1000) -> Image:
    shelf = Shelf(root)
    scratch = shelf.scratch()
    (scratch / "ready").mkdir()
    (scratch / "ready" / "rootfs.erofs").write_bytes(b"e" * size)
    image = shelf.publish(scratch, digest(n), f"registry:5000/app:{n}", CONFIG)
    scratch.rmdir()
    return image


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def hexes(*numbers: int) -> set[str]:
    return {f"{n:064x}" for n in numbers}


async def test_published_image_is_the_same_after_a_restart(tmp_path: Path) -> None:
    image = shelve(tmp_path / "images", 1)
    store = ImageStore(tmp_path / "images", limit_bytes=0)
    assert store.get(digest(1)) == image
    assert image.config == CONFIG
    assert store.get(digest(2)) is None
    pinned = store.ensure("registry:5000/other:2", digest(1))
    assert pinned == Ready(image)
    assert store.ensure(f"registry:5000/app@{digest(1)}", None) == Ready(image)


async def test_vmms_of_other_users_may_read_the_rootfs_and_nobody_may_write(
    tmp_path: Path,
) -> None:
    old = os.umask(0o077)
    try:
        image = shelve(tmp_path / "images", 1)
    finally:
        os.umask(old)
    assert image.rootfs.stat().st_mode & 0o777 == 0o444
    assert image.rootfs.parent.stat().st_mode & 0o777 == 0o711
    assert (tmp_path / "images").stat().st_mode & 0o777 == 0o711


@pytest.mark.parametrize("damage", ["cut", "no facts", "garbage", "newer", "moved"])
async def test_damaged_image_is_not_handed_out(tmp_path: Path, damage: str) -> None:
    image = shelve(tmp_path, 1)
    facts = image.rootfs.with_name("image.json")
    if damage == "cut":
        image.rootfs.chmod(0o644)
        os.truncate(image.rootfs, 999)
    elif damage == "no facts":
        facts.unlink()
    elif damage == "garbage":
        facts.write_bytes(b'{"version": 1, "digest": 7}')
    elif damage == "newer":
        facts.write_text(facts.read_text().replace('"version": 1', '"version": 2'))
    else:
        image.rootfs.parent.rename(tmp_path / f"{2:064x}")
    store = ImageStore(tmp_path, limit_bytes=0)
    assert store.get(digest(1)) is None
    assert store.get(digest(2)) is None
    repaired = shelve(tmp_path, 1)  # a new pull takes the place
    assert ImageStore(tmp_path, limit_bytes=0).get(digest(1)) == repaired


async def test_image_that_vanishes_under_us_is_noticed(tmp_path: Path) -> None:
    image = shelve(tmp_path, 1)
    store = ImageStore(tmp_path, limit_bytes=0)
    assert store.get(digest(1)) == image
    image.rootfs.unlink()
    assert store.get(digest(1)) is None


async def test_start_removes_half_pulls_and_keeps_what_is_complete(tmp_path: Path) -> None:
    shelve(tmp_path, 1)
    half = Shelf(tmp_path).scratch()
    (half / "tree" / "deep").mkdir(parents=True)
    (half / "tree" / "deep" / "file").write_bytes(b"x")
    (tmp_path / "somebody's notes").write_text("not ours")
    store = ImageStore(tmp_path, limit_bytes=0)
    await store.start()
    assert names(tmp_path) == {*hexes(1), "somebody's notes"}


async def test_start_does_not_take_a_pull_of_its_own_for_a_leftover(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    scratch = shelf.scratch()
    await shelf.sweep()
    assert names(tmp_path) == {scratch.name}
    await shelf.remove(scratch)
    assert names(tmp_path) == set()


async def test_half_pull_is_closed_to_other_users(tmp_path: Path) -> None:
    assert Shelf(tmp_path).scratch().stat().st_mode & 0o777 == 0o700


async def test_collect_keeps_what_is_in_use_and_stops_at_the_limit(tmp_path: Path) -> None:
    for n in range(5):
        shelve(tmp_path, n)
    store = ImageStore(tmp_path, limit_bytes=3000, grace=0)
    for n in (0, 3, 1, 2, 4):
        store.get(digest(n))  # used in this order
    removed = await store.collect({digest(0)})
    assert removed == (digest(3), digest(1))
    assert names(tmp_path) == hexes(0, 2, 4)
    assert await store.collect({digest(0)}) == ()


async def test_collect_keeps_what_was_handed_out_a_moment_ago(tmp_path: Path) -> None:
    shelve(tmp_path, 1)
    shelve(tmp_path, 2)
    store = ImageStore(tmp_path, limit_bytes=0)
    fact = store.ensure("registry:5000/app:1", digest(1))
    assert isinstance(fact, Ready)
    assert await store.collect(set()) == (digest(2),)
    assert store.get(digest(1)) == fact.image


async def test_collected_image_can_be_had_no_more(tmp_path: Path) -> None:
    shelve(tmp_path, 1)
    store = ImageStore(tmp_path, limit_bytes=0, grace=0)
    await store.collect(set())
    assert store.get(digest(1)) is None
    assert ImageStore(tmp_path, limit_bytes=0).get(digest(1)) is None


async def test_reference_that_is_none_is_stalled_at_once(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, limit_bytes=0)
    fact = store.ensure("Not An Image", None)
    assert isinstance(fact, Failed)
    assert (fact.reason, fact.stalled) == ("InvalidImageReference", True)
    evil = store.ensure("registry:5000/app:1", "sha256:../../etc")
    assert isinstance(evil, Failed)
    assert (evil.reason, evil.stalled) == ("InvalidImageReference", True)


async def settled(store: ImageStore, reference: str) -> Failed | Ready:
    changed = asyncio.Event()
    store.subscribe(lambda _: changed.set())
    fact = store.ensure(reference, None)
    while isinstance(fact, Pulling):
        await asyncio.wait_for(changed.wait(), 20)
        changed.clear()
        fact = store.ensure(reference, None)
    return fact


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:9", "localhost", "x.localhost:1", "[::1]:9", "169.254.169.254", "0.0.0.0"],
)
async def test_node_itself_is_no_registry_unless_an_admin_says_so(
    tmp_path: Path, address: str
) -> None:
    store = ImageStore(tmp_path, limit_bytes=0)
    fact = await settled(store, f"{address}/app:1")
    assert isinstance(fact, Failed)
    assert (fact.reason, fact.stalled) == ("RegistryNotAllowed", True)
    assert "insecure_registries" in fact.message


async def test_missing_program_stalls_and_names_itself(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, limit_bytes=0, tools=replace(Tools(), skopeo="no-such-skopeo"))
    fact = await settled(store, "registry.invalid/app:1")
    assert isinstance(fact, Failed)
    assert (fact.reason, fact.stalled) == ("ToolMissing", True)
    assert "no-such-skopeo" in fact.message


async def test_failure_is_kept_until_its_back_off_ends_and_grows(tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    skopeo = tmp_path / "skopeo"
    skopeo.write_text(f"#!/bin/sh\necho x >> {tries}\necho 'connection refused' >&2\nexit 1\n")
    skopeo.chmod(0o755)
    store = ImageStore(
        tmp_path / "images",
        limit_bytes=0,
        tools=replace(Tools(), skopeo=str(skopeo)),
        backoff=Backoff(base=0.05, cap=1000.0),
    )
    waits = []
    assert store.ensure("registry.invalid/app:1", None) == Pulling("asking the registry", None)
    for _ in range(3):
        before = time.monotonic()
        fact = await settled(store, "registry.invalid/app:1")
        assert isinstance(fact, Failed)
        assert (fact.reason, fact.stalled) == ("RegistryUnreachable", False)
        assert store.ensure("registry.invalid/app:1", None) is fact  # no new try before its time
        waits.append(fact.retry_at - before)
        await until(lambda due=fact.retry_at: time.monotonic() >= due)
        again = store.ensure("registry.invalid/app:1", None)
        assert isinstance(again, Pulling)
        assert again.progress == f"asking the registry again after: {fact.message}"
    await store.close()
    assert 3 <= len(tries.read_text().split()) <= 4  # the last one may have been ended at once
    assert waits[0] >= 0.05
    assert waits[1] >= 0.1
    assert waits[2] >= 0.2


async def test_close_ends_a_pull_that_hangs(tmp_path: Path) -> None:
    skopeo = tmp_path / "skopeo"
    skopeo.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 1000\n")
    skopeo.chmod(0o755)
    store = ImageStore(
        tmp_path / "images", limit_bytes=0, tools=replace(Tools(), skopeo=str(skopeo))
    )
    assert store.ensure("registry.invalid/app:1", None) == Pulling("asking the registry", None)
    await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    await store.close()
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists()


async def test_publishing_again_keeps_the_file_that_vmms_may_open(tmp_path: Path) -> None:
    image = shelve(tmp_path, 1)
    before = image.rootfs.stat().st_ino
    shelf = Shelf(tmp_path)
    scratch = shelf.scratch()
    (scratch / "ready").mkdir()
    (scratch / "ready" / "rootfs.erofs").write_bytes(b"e" * 1000)
    assert shelf.publish(scratch, digest(1), "registry:5000/app:other", CONFIG) == image
    assert image.rootfs.stat().st_ino == before
    await shelf.remove(scratch)
