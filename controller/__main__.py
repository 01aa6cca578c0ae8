"""``python -m controller``: the same as ``torpor``, for when nothing is on PATH yet."""

from controller.cli.main import main

main()
