"""The API: what users and our own processes say to each other, as values.

One module per kind; ``meta`` holds what kinds share, ``reasons`` the words of conditions, ``parse``
turns stored objects into values, ``schema`` turns the models into CustomResourceDefinitions. The
models are the one place where a field, its bounds and its description are written; the YAML under
``crds/`` is generated from them. Nothing here does I/O or decides anything.
"""

from typing import Final

GROUP: Final = "torpor.dev"
VERSION: Final = "v1alpha1"
