"""The proof of KVM with a real VMM and a real kernel."""

import shutil
from pathlib import Path

import pytest

from controller.guest.kernel import KernelStore
from controller.host import kvm
from controller.settings import cache_dir

pytestmark = pytest.mark.node
QEMU = Path(shutil.which("qemu-system-x86_64") or "/nowhere")


@pytest.fixture(scope="module")
def kernel() -> Path:
    return KernelStore(cache_dir() / "kernels").ensure().vmlinuz


@pytest.fixture
def emulating(tmp_path: Path) -> Path:
    """The same VMM with the processor emulated: a host where the proof must succeed."""
    script = tmp_path / "qemu"
    script.write_text(
        "#!/bin/bash\n"
        'words=("$@"); words=("${words[@]/#kvm/tcg}"); words=("${words[@]/#host/max}")\n'
        f'exec {QEMU} "${{words[@]}}"\n'
    )
    script.chmod(0o755)
    return script


def test_guest_that_boots_is_the_proof(tmp_path: Path, kernel: Path, emulating: Path) -> None:
    verdict = kvm.prove_kvm(emulating, kernel, state_dir=tmp_path, deadline=100)
    assert verdict == kvm.Verdict(True, "a guest booted under KVM")


def test_kernel_that_is_none_is_no_proof(tmp_path: Path, emulating: Path) -> None:
    wrong = tmp_path / "vmlinuz"
    wrong.write_bytes(b"no kernel")
    verdict = kvm.prove_kvm(emulating, wrong, state_dir=tmp_path)
    assert not verdict.usable
    assert "status 1" in verdict.why


def test_verdict_of_this_host_comes_in_time_with_its_reason(tmp_path: Path, kernel: Path) -> None:
    verdict = kvm.prove_kvm(QEMU, kernel, state_dir=tmp_path)
    print(f"\nKVM here: {verdict}")  # the one line that tells which hosts this suite has seen
    assert verdict.why
    assert kvm.prove_kvm(Path(QEMU), kernel, state_dir=tmp_path) == verdict
