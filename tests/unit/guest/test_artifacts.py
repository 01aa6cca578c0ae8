"""Kernel and initrd of a guest: made for a boot, found again by their digests for a wake."""

import hashlib
from pathlib import Path

import pytest

from controller.guest import artifacts
from controller.guest.artifacts import GuestArtifacts, find
from controller.guest.initrd import INIT_SOURCE
from controller.host import crate


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "kernels"


def made(root: Path, tmp_path: Path, init: bytes) -> GuestArtifacts:
    """With a stand-in for the compiled init, so that nothing is compiled here."""
    vmlinuz = tmp_path / "vmlinuz"
    vmlinuz.write_bytes(b"kernel")
    cache = tmp_path / "cache"
    binary = crate.place(INIT_SOURCE, "torpor-init", cache)
    binary.parent.mkdir(parents=True, exist_ok=True)
    binary.write_bytes(init)
    return artifacts.make(root, (vmlinuz, None), cache)


def test_digests_are_those_of_the_files(root: Path, tmp_path: Path) -> None:
    got = made(root, tmp_path, b"init")
    assert hashlib.sha256(got.vmlinuz.read_bytes()).hexdigest() == got.digest
    assert hashlib.sha256(got.initrd.read_bytes()).hexdigest() == got.initrd_digest


def test_an_older_initrd_is_found_after_a_newer_one_was_made(root: Path, tmp_path: Path) -> None:
    old = made(root, tmp_path, b"old init")
    new = made(root, tmp_path, b"new init")
    assert old.initrd != new.initrd
    for one in (old, new):
        assert find(root, one.digest, one.initrd_digest) == one


def test_what_is_gone_or_was_never_here_is_not_found(root: Path, tmp_path: Path) -> None:
    assert find(root, "0" * 64, "0" * 64) is None
    got = made(root, tmp_path, b"init")
    assert find(root, got.digest, "0" * 64) is None
    assert find(root, "0" * 64, got.initrd_digest) is None
    got.initrd.unlink()
    assert find(root, got.digest, got.initrd_digest) is None


@pytest.mark.parametrize("digest", ["", "..", "../kernels", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_nothing_but_a_digest_becomes_a_path(root: Path, tmp_path: Path, digest: str) -> None:
    got = made(root, tmp_path, b"init")
    assert find(root, digest, got.initrd_digest) is None
    assert find(root, got.digest, digest) is None
