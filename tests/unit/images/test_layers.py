"""Layers: wrong bytes, bombs and broken archives are told before anything is unpacked."""

import gzip
import hashlib
import io
import tarfile
import threading
from pathlib import Path

import pytest

from controller.errors import Blocked, Retry
from controller.images.layers import Caps, Cost, cost, verify
from controller.images.manifest import Blob
from tests.registry import entry, tar

TAR = "application/vnd.oci.image.layer.v1.tar"
CAPS = Caps(compressed=10**6, uncompressed=10**6, entries=100)


def blob(data: bytes, media_type: str = TAR) -> Blob:
    return Blob(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data), media_type)


def measured(directory: Path, data: bytes, media_type: str = TAR, caps: Caps = CAPS) -> Cost:
    path = directory / "layer"
    path.write_bytes(data)
    return cost(path, blob(data, media_type), caps, threading.Event())


def pax(headers: dict[str, str], name: str = "x", content: bytes = b"") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo(name)
        info.size, info.pax_headers = len(content), headers
        archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


LAYER = tar(
    ("bin/sh", b"x" * 1000),
    entry("etc", tarfile.DIRTYPE),
    entry("link", tarfile.SYMTYPE, "/etc"),
    entry("hard", tarfile.LNKTYPE, "bin/sh"),
    entry("null", tarfile.CHRTYPE, devmajor=1, devminor=3),
    ("n" * 300, b"y" * 513),
)


@pytest.mark.parametrize("gz", [False, True])
def test_cost_counts_content_and_entries(tmp_path: Path, gz: bool) -> None:
    data, kind = (gzip.compress(LAYER), f"{TAR}+gzip") if gz else (LAYER, TAR)
    assert measured(tmp_path, data, kind) == Cost(1513, 6)


def test_gzip_of_several_members_is_read_to_its_end(tmp_path: Path) -> None:
    half = len(LAYER) // 2
    data = gzip.compress(LAYER[:half]) + gzip.compress(LAYER[half:])
    assert measured(tmp_path, data, f"{TAR}+gzip") == Cost(1513, 6)


@pytest.mark.parametrize("data", [b"", tar(), tar(("a", b"abc"))[:515]])
def test_writers_that_leave_out_the_end_are_understood(tmp_path: Path, data: bytes) -> None:
    assert measured(tmp_path, data).entries == (1 if data[:1] == b"a" else 0)


def test_bomb_is_refused_by_its_unpacked_size(tmp_path: Path) -> None:
    bomb = gzip.compress(tar(("zeros", bytes(5 * 10**6))))
    assert len(bomb) < 10_000
    with pytest.raises(Blocked, match="over 1000000 bytes when unpacked"):
        measured(tmp_path, bomb, f"{TAR}+gzip")


def test_bomb_behind_the_end_of_the_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Blocked, match="when unpacked"):
        measured(tmp_path, gzip.compress(tar(("a", b"")) + bytes(2 * 10**6)), f"{TAR}+gzip")


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    fits = tar(*[(f"f{n}", b"") for n in range(100)])
    assert measured(tmp_path, fits).entries == 100
    with pytest.raises(Blocked, match="over 100 files"):
        measured(tmp_path, tar(*[(f"f{n}", b"") for n in range(101)]))


@pytest.mark.parametrize("key", ["GNU.sparse.realsize", "GNU.sparse.size"])
def test_sparse_file_costs_what_it_will_be(tmp_path: Path, key: str) -> None:
    assert measured(tmp_path, pax({key: "90000"}, content=b"1")).bytes == 90000
    with pytest.raises(Blocked, match="when unpacked"):
        measured(tmp_path, pax({key: str(2**40)}, content=b"1"))


def test_old_sparse_header_costs_what_it_will_be(tmp_path: Path) -> None:
    header = bytearray(tar(("s", b"")))
    header[156:157] = b"S"
    header[483:495] = b"%011o\0" % 2**32
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header[:512])
    with pytest.raises(Blocked, match="when unpacked"):
        measured(tmp_path, bytes(header))


def test_header_that_would_fill_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Blocked, match="a header of 200"):
        measured(tmp_path, pax({"comment": "x" * 2_000_000}), caps=Caps())


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"not an archive" * 100, TAR),
        (LAYER, f"{TAR}+gzip"),
        (gzip.compress(LAYER)[:-20], f"{TAR}+gzip"),
        (LAYER[:600], TAR),
        (pax({"size": "-5"}), TAR),
        (pax({"GNU.sparse.size": "many"}), TAR),
    ],
)
def test_broken_archive_is_said_to_be_one(tmp_path: Path, data: bytes, kind: str) -> None:
    with pytest.raises(Retry, match="is no archive") as broken:
        measured(tmp_path, data, kind)
    assert broken.value.reason == "ImageUnpackFailed"


@pytest.mark.parametrize("arrived", [LAYER[:-1], LAYER + b"x", b"X" + LAYER[1:], b"", None])
def test_blob_with_other_bytes_than_its_digest_is_refused(
    tmp_path: Path, arrived: bytes | None
) -> None:
    path = tmp_path / "blob"
    path.write_bytes(LAYER)
    verify(path, blob(LAYER))
    if arrived is None:
        path.unlink()
    else:
        path.write_bytes(arrived)
    with pytest.raises(Retry, match="the registry serves something else"):
        verify(path, blob(LAYER))


def test_walk_ends_soon_after_it_is_told_to(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    path.write_bytes(LAYER)
    stop = threading.Event()
    stop.set()
    assert cost(path, blob(LAYER), CAPS, stop).entries == 1
