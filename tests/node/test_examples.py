"""The examples' images: built by their scripts, pulled by the store, run from what was stored.

Run in a chroot, so that a broken image is told apart from a broken guest. That they live as
Instances is shown on a cluster (tests/cluster).
"""

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from controller.api.instance import Instance
from controller.images.image import Image, Pulling, Ready
from controller.images.reference import parse
from controller.images.store import ImageStore
from tests.registry import Registry, missing, running_registry
from tests.waiting import until

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = {"01-hello": "hello", "02-counter": "counter"}  # those that build an image
MANIFESTS = sorted(path.relative_to(EXAMPLES) for path in EXAMPLES.glob("*/*.yaml"))
READMES = sorted(path.relative_to(EXAMPLES) for path in EXAMPLES.glob("*/README.md"))

pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: chroot"),
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}"),
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        for directory in NAMES:
            build(directory, running)
        yield running


def build(directory: str, registry: Registry) -> str:
    done = subprocess.run(
        [str(EXAMPLES / directory / "build-image.sh"), registry.address],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def pulled(reference: str, registry: Registry, root: Path) -> Image:
    store = ImageStore(
        root, limit_bytes=0, insecure_registries=frozenset({registry.address}), reserve_bytes=0
    )
    try:
        await until(lambda: not isinstance(store.ensure(reference, None), Pulling), 60)
        fact = store.ensure(reference, None)
        assert isinstance(fact, Ready), fact
        return fact.image
    finally:
        await store.close()


@contextlib.contextmanager
def running(image: Image, root: Path, **env: str) -> Iterator[subprocess.Popen[str]]:
    """The image's command, in a chroot of its files, with pipes to it."""
    subprocess.run(
        ["fsck.erofs", f"--extract={root}", str(image.rootfs)], check=True, capture_output=True
    )
    os.mknod(root / "dev" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))  # a guest has it
    process = subprocess.Popen(
        [
            shutil.which("chroot") or "chroot",
            str(root),
            *image.config.entrypoint,
            *image.config.cmd,
        ],
        env=dict(image.config.env) | env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its helpers are in its session
        process.communicate()


@pytest.mark.parametrize("manifest", MANIFESTS, ids=str)
def test_manifest_is_valid_and_names_an_image_that_a_script_pushes_or_a_neighbour(
    manifest: Path, registry: Registry
) -> None:
    for document in yaml.safe_load_all((EXAMPLES / manifest).read_text()):
        instance = Instance.model_validate(document)
        if instance.spec.fork_from is not None:
            neighbour = yaml.safe_load((EXAMPLES / manifest.parent / "instance.yaml").read_text())
            assert instance.spec.fork_from.name == neighbour["metadata"]["name"]
            continue
        assert instance.spec.image is not None
        reference = parse(instance.spec.image)
        assert reference.registry == "127.0.0.1:5055"
        assert registry.digest(f"{reference.path}:{reference.tag}").startswith("sha256:")


def test_no_two_manifests_name_the_same_instance() -> None:
    texts = [(EXAMPLES / manifest).read_text() for manifest in MANIFESTS]
    names = [each["metadata"]["name"] for text in texts for each in yaml.safe_load_all(text)]
    assert len(names) == len(set(names)) == 9


@pytest.mark.parametrize("directory", NAMES)
def test_second_build_has_nothing_to_do(directory: str, registry: Registry) -> None:
    before = registry.digest(f"{NAMES[directory]}:1")
    assert "is up to date" in build(directory, registry)
    assert registry.digest(f"{NAMES[directory]}:1") == before


def test_registry_that_is_not_there_is_said_in_one_line() -> None:
    done = subprocess.run(
        [str(EXAMPLES / "01-hello" / "build-image.sh"), "127.0.0.1:9"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert "cannot push 127.0.0.1:9/" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_readme_is_short_and_names_what_exists(readme: Path) -> None:
    text = (EXAMPLES / readme).read_text()
    assert len(text.splitlines()) <= 22
    named = re.findall(r"(?<!\S)examples/\S+", text)
    assert named
    assert not [path for path in named if not (EXAMPLES.parent / path).is_file()]


async def test_hello_greets_answers_and_ends_on_a_signal(
    registry: Registry, tmp_path: Path
) -> None:
    image = await pulled(f"{registry.address}/hello:1", registry, tmp_path / "images")
    with running(image, tmp_path / "root") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "hello from torpor\n"
        assert process.stdout.readline() == f"my name is {os.uname().nodename}\n"
        print("are you there?", file=process.stdin, flush=True)
        assert process.stdout.readline() == "you said: are you there?\n"
        process.terminate()
        assert process.stdout.readline() == "goodbye\n"
        assert process.wait(10) == 0


async def test_hello_ends_with_the_code_it_was_given(registry: Registry, tmp_path: Path) -> None:
    image = await pulled(f"{registry.address}/hello:1", registry, tmp_path / "images")
    with running(image, tmp_path / "root", EXIT_AFTER="0", EXIT_CODE="7") as process:
        assert process.wait(10) == 7


async def test_counter_counts_and_says_who_it_is_and_how_far_it_came(
    registry: Registry, tmp_path: Path
) -> None:
    image = await pulled(f"{registry.address}/counter:1", registry, tmp_path / "images")
    with running(image, tmp_path / "root") as process:
        assert process.stdout is not None
        me = os.uname().nodename
        assert process.stdout.readline() == f"1 {me} -\n", "there is no machine-id yet"
        (tmp_path / "root" / "etc" / "machine-id").write_text("0f3a55de" + "0" * 24 + "\n")
        assert process.stdout.readline() == f"2 {me} 0f3a55de\n"
        process.terminate()
        assert process.stdout.readline().startswith("stopped at ")
        assert process.wait(10) == 0
