"""Building our own Rust programs: once per content, by one of many."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from controller.errors import Blocked
from controller.host import crate

pytestmark = pytest.mark.skipif(
    not (shutil.which("cargo") or (Path.home() / ".cargo/bin/cargo").exists()), reason="no cargo"
)
CARGO_TOML = '[package]\nname = "tiny"\nversion = "0.1.0"\nedition = "2021"\n'
CARGO_LOCK = 'version = 3\n\n[[package]]\nname = "tiny"\nversion = "0.1.0"\n'


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = tmp_path / "source"
    (made / "src").mkdir(parents=True)
    (made / "Cargo.toml").write_text(CARGO_TOML)
    (made / "Cargo.lock").write_text(CARGO_LOCK)
    (made / "src" / "main.rs").write_text('fn main() { println!("one"); }')
    return made


def test_many_at_once_build_once_and_leave_only_the_program(tmp_path: Path, source: Path) -> None:
    cache = tmp_path / "cache"
    with ThreadPoolExecutor(3) as pool:
        built = set(pool.map(lambda _: crate.build(source, "tiny", cache), range(3)))
    assert len(built) == 1
    program = built.pop()
    assert subprocess.check_output([program]) == b"one\n"
    made = program.stat().st_mtime_ns
    assert crate.build(source, "tiny", cache).stat().st_mtime_ns == made
    assert sorted(p.name for p in program.parent.iterdir()) == ["lock", "tiny"]
    assert not (source / "target").exists()
    # A change of a source is another program; the old one stays for whoever runs it.
    (source / "src" / "main.rs").write_text("fn main() { println!() }")
    assert crate.place(source, "tiny", cache) != program
    assert program.exists()


def test_broken_source_says_what_the_compiler_said(tmp_path: Path, source: Path) -> None:
    (source / "src" / "main.rs").write_text("fn main() { nonsense }")
    with pytest.raises(Blocked, match=r"cannot build tiny: .*nonsense") as caught:
        crate.build(source, "tiny", tmp_path / "cache")
    assert caught.value.reason == "BuildFailed"
    assert not crate.place(source, "tiny", tmp_path / "cache").exists()
