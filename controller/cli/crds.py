"""``torpor crds``: write the CustomResourceDefinitions from the models, or check the written ones.

What does not live here: how a schema is made (``api.schema``).
"""

from pathlib import Path

import click

from controller.api.schema import KINDS, crd_yaml, file_name
from controller.errors import Rejected


@click.command("crds")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("crds"),
    show_default=True,
    help="Where the files are.",
)
@click.option("--check", is_flag=True, help="Write nothing; fail when a file is out of date.")
def crds(directory: Path, check: bool) -> None:
    """Generate the CustomResourceDefinitions from the API models."""
    for kind in KINDS:
        path = directory / file_name(kind)
        wanted = crd_yaml(kind)
        if _read(path) == wanted:
            click.echo(f"{path}: up to date")
        elif check:
            raise Rejected(f"{path} differs from the models; run `torpor crds` and commit it")
        else:
            directory.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted)
            click.echo(f"{path}: written")


def _read(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None
