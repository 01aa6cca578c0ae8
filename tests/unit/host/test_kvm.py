"""How the proof of KVM is judged and remembered, with stand-ins for the VMM."""

import os
import re
from pathlib import Path

import pytest

from controller.host import kvm

pytestmark = pytest.mark.skipif(
    not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no /dev/kvm to open: never tried"
)
BOOTS = 'for w in "$@"; do case $w in file,*) echo "Kernel panic" >"${w##*path=}";; esac; done'


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return tmp_path / "vmlinuz"


def vmm(tmp_path: Path, body: str, version: str = "QEMU 10.0") -> Path:
    script = tmp_path / "qemu"
    script.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && {{ echo "{version}"; exit; }}\n'
        f'echo boot >>"{tmp_path}/boots"\n{body}\n'
    )
    script.chmod(0o755)
    return script


def boots(tmp_path: Path) -> int:
    path = tmp_path / "boots"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_only_a_kernel_that_got_to_its_panic_is_proof(tmp_path: Path, kernel: Path) -> None:
    assert kvm.prove_kvm(vmm(tmp_path, BOOTS), kernel, state_dir=tmp_path).usable


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("exit 0", "ended without a word"),
        ("echo 'failed to set MSR 0x10a' >&2; kill -ABRT $$", "status -6; .* MSR 0x10a"),
        ("exec sleep 1000", "not done after"),
    ],
)
def test_anything_else_is_not_and_says_why(
    tmp_path: Path, kernel: Path, body: str, why: str
) -> None:
    verdict = kvm.prove_kvm(vmm(tmp_path, body), kernel, state_dir=tmp_path, deadline=0.5)
    assert not verdict.usable
    assert re.search(why, verdict.why)


def test_verdict_is_remembered_for_this_boot_and_version(tmp_path: Path, kernel: Path) -> None:
    first = kvm.prove_kvm(vmm(tmp_path, "exit 0"), kernel, state_dir=tmp_path)
    again = kvm.prove_kvm(vmm(tmp_path, BOOTS), kernel, state_dir=tmp_path)
    assert again == first
    assert boots(tmp_path) == 1
    newer = kvm.prove_kvm(vmm(tmp_path, BOOTS, "QEMU 10.1"), kernel, state_dir=tmp_path)
    assert newer.usable
    assert boots(tmp_path) == 2


def test_damaged_memory_of_a_verdict_is_no_verdict(tmp_path: Path, kernel: Path) -> None:
    (tmp_path / "kvm.json").write_text('{"key": 7')
    assert kvm.prove_kvm(vmm(tmp_path, BOOTS), kernel, state_dir=tmp_path).usable
