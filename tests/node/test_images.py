"""Images from a real registry, through the real programs, into files that a guest could boot."""

import asyncio
import contextlib
import ipaddress
import json
import os
import re
import shutil
import ssl
import stat
import subprocess
import sys
import tarfile
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from controller.core.backoff import Backoff
from controller.images.image import Failed, Image, ImageConfig, ImageFact, Pulling, Ready
from controller.images.layers import Caps
from controller.images.store import ImageStore
from controller.images.tool import Tools
from tests.fake_registry import CONFIG, INDEX, LAYER, FakeRegistry, fake_registry
from tests.registry import Registry, build_image, entry, missing, running_registry, tar
from tests.waiting import until

pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: file owners are kept"),
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}"),
]

HELLO = tar(
    ("bin/hello", b"#!/bin/sh\necho hello\n"),
    ("etc/passwd", b"root:x:0:0::/:/bin/sh\napp:x:1000:1000::/srv:/bin/sh\n"),
    ("etc/group", b"root:x:0:\nstaff:x:50:\n"),
)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with fake_registry() as running:
        yield running


class Stores:
    """Stores that are closed at the end, and the question that waits for an answer."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._open: list[ImageStore] = []

    async def open(self, address: str, root: Path | None = None, **options: object) -> ImageStore:
        settings: dict[str, object] = {
            "limit_bytes": 0,
            "insecure_registries": frozenset({address}),
            "reserve_bytes": 0,
            "backoff": Backoff(base=0.01, cap=0.01),
            "grace": 0,
        }
        store = ImageStore(root or self.root, **(settings | options))  # type: ignore[arg-type]
        self._open.append(store)
        await store.start()
        return store

    async def close(self) -> None:
        for store in self._open:
            await store.close()


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    opened = Stores(tmp_path / "images")
    yield opened
    await opened.close()
    if opened.root.exists():  # whatever happened: nothing but whole images is left
        assert {len(path.name) for path in opened.root.iterdir()} <= {64}


async def settled(store: ImageStore, reference: str, pinned: str | None = None) -> ImageFact:
    changed = asyncio.Event()
    store.subscribe(lambda _: changed.set())
    while isinstance(fact := store.ensure(reference, pinned), Pulling):
        await asyncio.wait_for(changed.wait(), 30)
        changed.clear()
    return fact


async def ready(store: ImageStore, reference: str, pinned: str | None = None) -> Image:
    fact = await settled(store, reference, pinned)
    assert isinstance(fact, Ready), fact
    return fact.image


async def failed(store: ImageStore, reference: str, reason: str, *, stalled: bool) -> str:
    fact = await settled(store, reference)
    assert isinstance(fact, Failed), fact
    assert (fact.reason, fact.stalled) == (reason, stalled), fact
    assert fact.message.isprintable()
    return fact.message


def unpacked(image: Image, into: Path) -> Path:
    """The files of the image, as a guest would see them."""
    subprocess.run(
        ["fsck.erofs", f"--extract={into}", str(image.rootfs)], check=True, capture_output=True
    )
    return into


def dumped(image: Image, path: str) -> str:
    """What the filesystem's own tool says about one file in it."""
    argv = ["dump.erofs", f"--path={path}", str(image.rootfs)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def stored_mode(image: Image, path: str) -> int:
    """Type and permissions in the inode itself: 32 bytes a slot, the mode at offset 4."""
    found = re.search(r"NID: (\d+)", dumped(image, path))
    assert found
    with image.rootfs.open("rb") as file:
        file.seek(int(found[1]) * 32 + 4)
        return int.from_bytes(file.read(2), "little")


# -- what an image says arrives as it was said


async def test_config_survives_the_whole_way(
    registry: Registry, stores: Stores, tmp_path: Path
) -> None:
    env = {"PATH": "/bin:/usr/bin", "QUOTED": 'a "b" = c', "EMPTY": "", "UNICODE": "grüße"}
    layout = build_image(
        tmp_path,
        HELLO,
        entrypoint=("/bin/hello", "--loud"),
        cmd=("two words", "ü"),
        env=env,
        user="app:staff",
        workdir="/srv/app",
    )
    reference = registry.push(layout, "config:1")
    image = await ready(await stores.open(registry.address), reference)
    assert image.config == ImageConfig(
        ("/bin/hello", "--loud"), ("two words", "ü"), tuple(env.items()), "app:staff", "/srv/app"
    )
    assert image.digest == registry.digest("config:1")
    assert image.reference == reference
    assert image.rootfs.stat().st_size == image.rootfs_bytes


async def test_files_keep_owner_mode_time_links_and_devices(
    registry: Registry, stores: Stores, tmp_path: Path
) -> None:
    capable = entry("srv/capable", tarfile.REGTYPE)
    bind_low_ports = "\x01\x00\x00\x02" + "\x00\x04" + "\x00" * 14
    capable.pax_headers = {"SCHILY.xattr.security.capability": bind_low_ports}
    layer = tar(
        entry("srv", tarfile.DIRTYPE, uid=1000, gid=50, mtime=981173106),
        ("srv/deep/file", b"content"),
        entry("srv/link", tarfile.SYMTYPE, "../../outside"),
        entry("srv/hard", tarfile.LNKTYPE, "srv/deep/file"),
        entry("srv/suid", tarfile.REGTYPE, uid=7, gid=8, mode=0o4755, mtime=981173106),
        capable,
        entry("srv/null", tarfile.CHRTYPE, devmajor=1, devminor=3),
        entry("srv/pipe", tarfile.FIFOTYPE),
    )
    reference = registry.push(build_image(tmp_path, layer), "files:1")
    image = await ready(await stores.open(registry.address), reference)
    files = unpacked(image, tmp_path / "files") / "srv"
    suid = (files / "suid").stat()
    assert (suid.st_uid, suid.st_gid, suid.st_mtime) == (7, 8, 981173106)
    # the extracting program drops the bit, so the filesystem itself is asked
    assert stored_mode(image, "/srv/suid") == stat.S_IFREG | 0o4755
    assert "Xattr size: 0" not in dumped(image, "/srv/capable")
    assert (files.stat().st_uid, files.stat().st_gid) == (1000, 50)
    assert (files / "deep" / "file").read_bytes() == b"content"
    assert (files / "link").readlink() == Path("../../outside")
    assert (files / "null").stat().st_rdev == os.makedev(1, 3)
    assert stat.S_ISFIFO((files / "pipe").stat().st_mode)
    assert (files / "hard").read_bytes() == b"content"


async def test_upper_layers_replace_and_remove_what_lower_ones_hold(
    registry: Registry, stores: Stores, tmp_path: Path
) -> None:
    lower = tar(
        ("keep", b"1"),
        ("gone", b"1"),
        ("opaque/old", b"1"),
        entry("was-link", tarfile.SYMTYPE, "/etc"),
        ("was-file", b"1"),
    )
    upper = tar(
        (".wh.gone", b""),
        ("opaque/.wh..wh..opq", b""),
        ("opaque/new", b"2"),
        ("was-link", b"2"),
        entry("was-file", tarfile.SYMTYPE, "keep"),
    )
    reference = registry.push(build_image(tmp_path, lower, upper), "whiteout:1")
    image = await ready(await stores.open(registry.address), reference)
    files = unpacked(image, tmp_path / "files")
    assert {p.name for p in files.iterdir()} == {"keep", "opaque", "was-link", "was-file"}
    assert {p.name for p in (files / "opaque").iterdir()} == {"new"}
    assert (files / "was-link").read_bytes() == b"2"
    assert not (files / "was-link").is_symlink()
    assert (files / "was-file").readlink() == Path("keep")


async def test_same_manifest_gives_the_same_bytes_on_any_day(
    registry: Registry, stores: Stores, tmp_path: Path
) -> None:
    old = tar(entry("old", tarfile.REGTYPE, mtime=981173106), ("a/b/c/nobody-made-these", b"x"))
    reference = registry.push(build_image(tmp_path, HELLO, old), "same:1")
    one = await ready(await stores.open(registry.address), reference)
    other = await ready(await stores.open(registry.address, tmp_path / "other"), reference)
    assert one.rootfs.read_bytes() == other.rootfs.read_bytes()


# -- tags, digests, sharing


async def test_pinned_digest_boots_the_same_after_the_tag_moved(
    registry: Registry, stores: Stores, tmp_path: Path
) -> None:
    reference = registry.push(build_image(tmp_path, tar(("version", b"1"))), "moving:1")
    first = await ready(await stores.open(registry.address), reference)
    registry.push(build_image(tmp_path, tar(("version", b"2"))), "moving:1")

    store = await stores.open(registry.address)
    assert store.ensure(reference, first.digest) == Ready(first)
    second = await ready(store, reference)
    assert second.digest == registry.digest("moving:1") != first.digest

    elsewhere = await stores.open(registry.address, tmp_path / "another node")
    again = await ready(elsewhere, reference, first.digest)
    assert again.digest == first.digest
    assert again.rootfs.read_bytes() == first.rootfs.read_bytes()


async def test_stored_image_needs_no_registry(
    registry: Registry, stores: Stores, tmp_path: Path
) -> None:
    reference = registry.push(build_image(tmp_path, HELLO), "offline:1")
    image = await ready(await stores.open(registry.address), reference)
    nobody = await stores.open("127.0.0.1:9")
    assert nobody.ensure("127.0.0.1:9/offline:1", image.digest) == Ready(image)


async def test_many_who_want_one_image_cause_one_pull(fake: FakeRegistry, stores: Stores) -> None:
    content = os.urandom(400_000)
    layer = tar(("file", content))
    fake.cut = len(layer) // 2
    for tag in ("a", "b"):
        wanted = fake.image(tag, layer)
    store = await stores.open(fake.address)
    told: list[str] = []
    store.subscribe(told.append)
    references = [f"{fake.address}/app:a", f"{fake.address}/app:b"]
    for _ in range(3):
        for reference in references:
            assert isinstance(store.ensure(reference, None), Pulling)

    def percents() -> list[int | None]:
        facts = [store.ensure(reference, None) for reference in references]
        return [fact.percent for fact in facts if isinstance(fact, Pulling)]

    await until(lambda: all(p is not None and 30 <= p < 100 for p in percents()))
    fact = store.ensure(references[0], None)
    assert isinstance(fact, Pulling)
    assert fact.progress == f"pulling, {fact.percent} %"
    fake.gate.set()
    images = [await ready(store, reference) for reference in references]
    assert images[0] == images[1]
    assert images[0].digest == wanted
    assert sorted(told) == references
    assert len(fake.blob_requests) == len(set(fake.blob_requests)) == 2  # config and layer


async def test_failure_is_told_to_everybody_who_shares_the_pull(
    fake: FakeRegistry, stores: Stores
) -> None:
    layer = tar(("file", b"x"))
    digest = fake.image("a", layer)
    fake.tag("b", *_again(fake, "a"))
    fake.lies = {blob: b"?" * len(data) for blob, data in fake.blobs.items()}
    store = await stores.open(fake.address)
    facts = await asyncio.gather(
        settled(store, f"{fake.address}/app:a"), settled(store, f"{fake.address}/app:b")
    )
    assert [isinstance(fact, Failed) and fact.reason for fact in facts] == ["ImageUnpackFailed"] * 2
    assert store.get(digest) is None


def _again(fake: FakeRegistry, tag: str) -> tuple[dict[str, object], str]:
    media_type, raw = fake.manifests[tag]
    return json.loads(raw), media_type


async def test_index_leads_to_the_image_of_this_platform(
    fake: FakeRegistry, stores: Stores
) -> None:
    digest = fake.image("amd64", tar(("file", b"x")))
    _index(fake, "multi", {("linux", "arm64"): fake.image("x"), ("linux", "amd64"): digest})
    image = await ready(await stores.open(fake.address), f"{fake.address}/app:multi")
    assert image.digest == digest


def _index(fake: FakeRegistry, tag: str, manifests: dict[tuple[str, str], str]) -> str:
    entries = [
        {
            "mediaType": fake.manifests[digest][0],
            "digest": digest,
            "size": len(fake.manifests[digest][1]),
            "platform": {"os": os_, "architecture": architecture},
        }
        for (os_, architecture), digest in manifests.items()
    ]
    return fake.tag(tag, {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}, INDEX)


# -- each way to fail has its own name


async def test_unknown_name_and_tag_are_not_found_and_may_come(
    registry: Registry, stores: Stores, tmp_path: Path
) -> None:
    store = await stores.open(registry.address)
    layout = build_image(tmp_path, HELLO)
    registry.push(layout, "known:1")
    for name in ("unknown:1", "known:2", f"known@sha256:{'0' * 64}"):
        message = await failed(store, f"{registry.address}/{name}", "ImageNotFound", stalled=False)
        assert name in message
        assert "push it" in message
    registry.push(layout, "known:2")
    await until(lambda: isinstance(store.ensure(f"{registry.address}/known:2", None), Ready))


@pytest.mark.parametrize(
    ("status", "error", "reason"),
    [
        (401, "UNAUTHORIZED", "ImageDenied"),
        (403, "DENIED", "ImageDenied"),
        (404, "NAME_UNKNOWN", "ImageNotFound"),
        (503, "UNAVAILABLE", "RegistryUnreachable"),
    ],
)
async def test_refusal_of_the_registry_has_its_reason(
    fake: FakeRegistry, stores: Stores, status: int, error: str, reason: str
) -> None:
    fake.status, fake.error = status, error
    await failed(await stores.open(fake.address), f"{fake.address}/app:1", reason, stalled=False)


async def test_registry_that_puts_us_off_for_ever_is_unreachable(
    fake: FakeRegistry, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.images.registry.ASK_DEADLINE", 1.0)
    fake.status = 429  # skopeo waits and asks again
    store = await stores.open(fake.address)
    message = await failed(store, f"{fake.address}/app:1", "RegistryUnreachable", stalled=False)
    assert "did not finish in 1 s" in message


async def test_registry_that_falls_silent_is_unreachable(
    fake: FakeRegistry, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.images.registry.SILENCE", 0.5)
    fake.image("1", tar(("file", os.urandom(100_000))))
    fake.cut = 50_000
    store = await stores.open(fake.address)
    message = await failed(store, f"{fake.address}/app:1", "RegistryUnreachable", stalled=False)
    assert "no progress" in message


async def test_slow_asker_still_gets_what_was_resolved_for_it_and_then_asks_anew(
    fake: FakeRegistry, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.images.store._FRESH", 0.0)
    store = await stores.open(fake.address)
    for content in (b"x", b"y"):
        digest = fake.image("1", tar(("file", content)))
        assert (await ready(store, f"{fake.address}/app:1")).digest == digest


async def test_nobody_there_and_no_such_host_are_unreachable(stores: Stores) -> None:
    store = await stores.open("127.0.0.1:9")
    for reference in ("127.0.0.1:9/app:1", "registry.invalid/app:1"):
        await failed(store, reference, "RegistryUnreachable", stalled=False)


async def test_plain_http_where_tls_is_asked_for_is_a_tls_error(
    fake: FakeRegistry, stores: Stores
) -> None:
    store = await stores.open("", local_registries=frozenset({fake.address}))
    message = await failed(store, f"{fake.address}/app:1", "RegistryTLS", stalled=False)
    assert "insecure_registries" in message


async def test_certificate_of_a_stranger_is_a_tls_error(stores: Stores, tmp_path: Path) -> None:
    with _tls_server(tmp_path) as address:
        store = await stores.open("", local_registries=frozenset({address}))
        await failed(store, f"{address}/app:1", "RegistryTLS", stalled=False)


@contextlib.contextmanager
def _tls_server(directory: Path) -> Iterator[str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stranger")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    pem = directory / "both.pem"
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def test_other_platforms_only_is_unsupported_and_says_what_there_is(
    fake: FakeRegistry, stores: Stores
) -> None:
    platforms = {("linux", "arm64"): fake.image("x"), ("windows", "amd64"): fake.image("y")}
    _index(fake, "foreign", platforms)
    store = await stores.open(fake.address)
    message = await failed(store, f"{fake.address}/app:foreign", "ImageUnsupported", stalled=True)
    assert "no linux/amd64 in the index: linux/arm64, windows/amd64" in message


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"architecture": "arm64"}, "an image for linux/arm64"),
        ({"User": "nosuch"}, "config.User 'nosuch', which its /etc/passwd does not have"),
        ({"User": "app:nosuch"}, "config.User 'app:nosuch', which its /etc/group does not have"),
        ({"WorkingDir": "../.."}, "an absolute path"),
        ({"Entrypoint": ["a\0b"]}, "text without NUL"),
    ],
)
async def test_config_that_no_guest_could_follow_is_unsupported(
    fake: FakeRegistry, stores: Stores, config: dict[str, object], found: str
) -> None:
    fake.image("bad", HELLO, **config)
    store = await stores.open(fake.address)
    message = await failed(store, f"{fake.address}/app:bad", "ImageUnsupported", stalled=True)
    assert found in message


async def test_users_by_number_or_behind_a_link_are_left_to_the_guest(
    fake: FakeRegistry, stores: Stores
) -> None:
    # the link means the guest's /usr; followed on the host it would mean the host's
    linked = tar(entry("etc", tarfile.SYMTYPE, "/usr/etc"), ("usr/etc/passwd", b"app:x:1:1::/:\n"))
    fake.image("number", tar(("x", b"")), User="12345:0")
    fake.image("linked", linked, User="app")
    store = await stores.open(fake.address)
    for tag in ("number", "linked"):
        await ready(store, f"{fake.address}/app:{tag}")


async def test_artifact_that_is_no_image_is_unsupported(fake: FakeRegistry, stores: Stores) -> None:
    chart = "application/vnd.cncf.helm.config.v1+json"
    fake.tag("chart", {"schemaVersion": 2, "config": fake.blob(b"{}", chart), "layers": []})
    store = await stores.open(fake.address)
    message = await failed(store, f"{fake.address}/app:chart", "ImageUnsupported", stalled=True)
    assert f"an artifact of type {chart}" in message


async def test_image_over_a_cap_is_refused_before_it_is_fetched(
    fake: FakeRegistry, stores: Stores
) -> None:
    fake.image("big", tar(("file", bytes(100_000))))
    store = await stores.open(fake.address, caps=Caps(compressed=50_000))
    message = await failed(store, f"{fake.address}/app:big", "ImageUnsupported", stalled=True)
    assert "50000 are allowed" in message
    assert fake.blob_requests == []


# -- a registry that lies, and a node that breaks


@pytest.mark.parametrize("lie", ["other bytes", "fewer bytes", "more bytes"])
async def test_blob_that_is_not_what_its_digest_says_never_becomes_an_image(
    fake: FakeRegistry, stores: Stores, lie: str
) -> None:
    layer = tar(("file", b"honest"))
    digest = fake.image("1", layer)
    name = next(blob for blob, data in fake.blobs.items() if data == layer)
    lies = {"other bytes": b"X" * len(layer), "fewer bytes": layer[:-1], "more bytes": layer + b"X"}
    fake.lies[name] = lies[lie]
    store = await stores.open(fake.address)
    await failed(store, f"{fake.address}/app:1", "ImageUnpackFailed", stalled=False)
    assert store.get(digest) is None
    fake.lies.clear()
    await until(lambda: isinstance(store.ensure(f"{fake.address}/app:1", None), Ready))


async def test_manifest_that_is_not_what_its_digest_says_is_refused(
    fake: FakeRegistry, stores: Stores
) -> None:
    digest = fake.image("1", tar(("file", b"x")))
    fake.image("2", tar(("file", b"y")))
    fake.manifests[digest] = fake.manifests["2"]
    store = await stores.open(fake.address)
    await failed(store, f"{fake.address}/app@{digest}", "ImageUnpackFailed", stalled=False)
    assert store.get(digest) is None


async def test_layer_that_is_not_what_the_config_promised_is_refused(
    fake: FakeRegistry, stores: Stores
) -> None:
    promise = {"type": "layers", "diff_ids": [f"sha256:{'0' * 64}"]}
    config = {"os": "linux", "architecture": "amd64", "rootfs": promise}
    document = {
        "schemaVersion": 2,
        "config": fake.blob(json.dumps(config).encode(), CONFIG),
        "layers": [fake.blob(tar(("file", b"x")), LAYER)],
    }
    fake.tag("promise", document)
    store = await stores.open(fake.address)
    await failed(store, f"{fake.address}/app:promise", "ImageUnpackFailed", stalled=False)


EVIL = {
    "dots": lambda canary: tar((f"../../../../../../../../../..{canary}/new", b"evil")),
    "absolute": lambda canary: tar((f"{canary}/new", b"evil")),
    "through a link": lambda canary: tar(
        entry("link", tarfile.SYMTYPE, canary), ("link/new", b"evil"), ("link/precious", b"evil")
    ),
    "through a link of a lower layer": lambda canary: [
        tar(entry("link", tarfile.SYMTYPE, canary)),
        tar(("link/new", b"evil")),
    ],
    "through a chain of links": lambda canary: tar(
        entry("a", tarfile.SYMTYPE, "/"),
        entry("b", tarfile.SYMTYPE, f"a/..{canary}"),
        ("b/new", b"evil"),
    ),
    "hard link out": lambda canary: tar(
        entry("hard", tarfile.LNKTYPE, f"{canary}/precious"), ("hard", b"evil")
    ),
    "hard link by dots": lambda canary: tar(
        entry("hard", tarfile.LNKTYPE, f"../../../../../../../..{canary}/precious"),
    ),
    "whiteout by dots": lambda canary: tar((f"../../../../../../..{canary}/.wh.precious", b"")),
    "whiteout through a link": lambda canary: [
        tar(entry("link", tarfile.SYMTYPE, canary)),
        tar(("link/.wh.precious", b"")),
    ],
    "opaque through a link": lambda canary: [
        tar(entry("link", tarfile.SYMTYPE, canary)),
        tar(("link/.wh..wh..opq", b"")),
    ],
    "whiteout of everything": lambda _: tar((".wh..", b""), (".wh...", b""), ("x/.wh...", b"")),
    "whiteout of the parent": lambda _: tar((".wh...", b""), ("f", b"")),
    "directory over a link": lambda canary: tar(
        entry("link", tarfile.SYMTYPE, canary), entry("link", tarfile.DIRTYPE, mode=0o777)
    ),
    "same name twice": lambda canary: tar(
        ("x", b"1"), entry("x", tarfile.SYMTYPE, f"{canary}/precious"), ("x", b"2")
    ),
    "deep": lambda _: tar(("d/" * 1500 + "f", b"")),
    "deeper by links": lambda _: tar(
        *(
            item
            for n in range(6)
            for item in (
                entry(("l/" if n else "") + "d/" * 900, tarfile.DIRTYPE),
                entry("l", tarfile.SYMTYPE, ("l/" if n else "") + "d/" * 900),
            )
        )
    ),
    "pipes and devices": lambda _: tar(
        entry("etc/passwd", tarfile.FIFOTYPE),
        entry("sda", tarfile.BLKTYPE, devmajor=8, devminor=0),
    ),
    "bomb": lambda _: tar(entry("s", tarfile.GNUTYPE_SPARSE), ("f", bytes(10_000_000))),
}


@pytest.mark.parametrize("name", EVIL)
async def test_evil_layer_does_not_leave_its_root(
    fake: FakeRegistry, stores: Stores, tmp_path: Path, name: str
) -> None:
    canary = tmp_path / "canary"
    canary.mkdir(mode=0o750)
    (canary / "precious").write_text("precious")
    before = (canary.stat().st_mode, (canary / "precious").stat().st_ino)
    layers = EVIL[name](str(canary))
    fake.image("evil", *(layers if isinstance(layers, list) else [layers]), User="app")
    store = await stores.open(fake.address, caps=Caps(uncompressed=5_000_000))
    await settled(store, f"{fake.address}/app:evil")  # refused or tamed: both are fine
    assert [path.name for path in canary.iterdir()] == ["precious"]
    assert (canary / "precious").read_text() == "precious"
    assert (canary / "precious").stat().st_nlink == 1
    assert (canary.stat().st_mode, (canary / "precious").stat().st_ino) == before
    assert stores.root.parent.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 4 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "torpor-test", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


async def test_image_that_will_not_fit_is_refused_with_the_space_it_needs(
    fake: FakeRegistry, stores: Stores, small_disk: Path
) -> None:
    fake.image("fits-not", tar(("file", os.urandom(1_900_000))))
    store = await stores.open(fake.address, small_disk)
    message = await failed(store, f"{fake.address}/app:fits-not", "NoSpace", stalled=False)
    assert "this image needs 3808192" in message
    assert list(small_disk.iterdir()) == []


async def test_disk_that_fills_up_meanwhile_is_no_space_and_leaves_nothing(
    fake: FakeRegistry, stores: Stores, small_disk: Path
) -> None:
    fake.image("1", tar(("file", os.urandom(1_000_000))))
    fake.cut = 900_000
    store = await stores.open(fake.address, small_disk)
    store.ensure(f"{fake.address}/app:1", None)
    await until(lambda: any(small_disk.glob(".pull-*/blobs/dir-put-blob*")))
    hog = small_disk / "hog"
    with contextlib.suppress(OSError), hog.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    fake.gate.set()
    await failed(store, f"{fake.address}/app:1", "NoSpace", stalled=False)
    assert list(small_disk.iterdir()) == [hog]
    hog.unlink()
    await until(lambda: isinstance(store.ensure(f"{fake.address}/app:1", None), Ready))


async def test_reserve_of_free_space_is_not_used_up(fake: FakeRegistry, stores: Stores) -> None:
    fake.image("1", tar(("file", b"x")))
    store = await stores.open(fake.address, reserve_bytes=2**60)
    message = await failed(store, f"{fake.address}/app:1", "NoSpace", stalled=False)
    assert "has 0 bytes to spare" in message


@pytest.mark.parametrize("broken", ["umoci", "mkfs_erofs"])
async def test_program_that_fails_leaves_nothing_and_the_next_pull_works(
    fake: FakeRegistry, stores: Stores, tmp_path: Path, broken: str
) -> None:
    program = _program(tmp_path / "broken", "echo killed by the kernel >&2; exit 137")
    fake.image("1", tar(("file", b"x")))
    store = await stores.open(fake.address, tools=Tools(**{broken: program}))
    message = await failed(store, f"{fake.address}/app:1", "ImageUnpackFailed", stalled=False)
    assert "killed by the kernel" in message
    assert list(stores.root.iterdir()) == []
    await ready(await stores.open(fake.address), f"{fake.address}/app:1")


def _program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


PULL = textwrap.dedent("""
    import asyncio, pathlib, sys
    from controller.images.store import ImageStore
    from controller.images.tool import Tools

    async def main(root, address, umoci, mkfs):
        store = ImageStore(pathlib.Path(root), limit_bytes=0, reserve_bytes=0,
            insecure_registries=frozenset({address}), tools=Tools(umoci=umoci, mkfs_erofs=mkfs))
        done = asyncio.Event()
        store.subscribe(lambda _: done.set())
        store.ensure(f"{address}/app:1", None)
        await done.wait()

    asyncio.run(main(*sys.argv[1:]))
""")


@pytest.mark.parametrize("phase", ["fetching", "unpacking", "making the filesystem"])
async def test_pull_killed_in_the_middle_is_cleaned_and_done_again(
    fake: FakeRegistry, stores: Stores, tmp_path: Path, phase: str
) -> None:
    digest = fake.image("1", tar(("file", os.urandom(100_000))))
    here = tmp_path / "here"
    hang = _program(tmp_path / "hang", f"echo $$ > {here}; exec sleep 1000")
    tools = {"unpacking": (hang, "mkfs.erofs"), "making the filesystem": ("umoci", hang)}
    fake.cut = 50_000 if phase == "fetching" else 0
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PULL, str(stores.root), fake.address),
        *tools.get(phase, ("umoci", "mkfs.erofs")),
    )
    try:
        if phase == "fetching":
            await until(lambda: any(stores.root.glob(".pull-*/blobs/dir-put-blob*")))
            pids = _children(process.pid)
        else:
            await until(lambda: here.exists() and here.read_text())
            pids = [int(here.read_text())]
        assert pids
    finally:
        process.kill()
        await process.wait()
    await until(lambda: not any(_runs(pid) for pid in pids))
    assert [path.name[:6] for path in stores.root.iterdir()] == [".pull-"]

    store = await stores.open(fake.address)
    assert list(stores.root.iterdir()) == []
    assert store.get(digest) is None
    fake.gate.set()
    assert (await ready(store, f"{fake.address}/app:1")).digest == digest


def _children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_collect_keeps_what_is_referenced_and_the_rest_can_be_had_again(
    registry: Registry, stores: Stores, tmp_path: Path
) -> None:
    store = await stores.open(registry.address)
    references = [
        registry.push(build_image(tmp_path, tar(("file", b"%d" % n))), f"collect:{n}")
        for n in range(3)
    ]
    images = [await ready(store, reference) for reference in references]
    assert set(await store.collect({images[1].digest})) == {images[0].digest, images[2].digest}
    assert store.get(images[1].digest) == images[1]
    assert not images[0].rootfs.exists()
    assert (await ready(store, references[0], images[0].digest)) == images[0]


async def test_pull_in_flight_survives_a_collection(fake: FakeRegistry, stores: Stores) -> None:
    fake.image("1", tar(("file", os.urandom(100_000))))
    fake.cut = 50_000
    store = await stores.open(fake.address)
    store.ensure(f"{fake.address}/app:1", None)
    await until(lambda: any(stores.root.glob(".pull-*/blobs/dir-put-blob*")))
    assert await store.collect(set()) == ()
    fake.gate.set()
    await ready(store, f"{fake.address}/app:1")


async def test_close_in_the_middle_of_a_pull_leaves_nothing(
    fake: FakeRegistry, stores: Stores
) -> None:
    fake.image("1", tar(("file", os.urandom(100_000))))
    fake.cut = 50_000
    store = await stores.open(fake.address)
    store.ensure(f"{fake.address}/app:1", None)
    await until(lambda: any(stores.root.glob(".pull-*/blobs/dir-put-blob*")))
    await store.close()
    assert list(stores.root.iterdir()) == []
    assert _children(os.getpid()) == [] or shutil.which("skopeo") not in {
        os.path.realpath(f"/proc/{pid}/exe") for pid in _children(os.getpid())
    }
