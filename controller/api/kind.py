"""How a kind presents itself to the API server: names, columns, what can be selected by.

What does not live here: the fields of any kind (their own modules) and the YAML (``schema``).
"""

from dataclasses import dataclass

from controller.api.meta import Model, Rule


@dataclass(frozen=True)
class Column:
    """A column of ``kubectl get``. ``wide`` ones show with ``-o wide`` only."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False
    description: str = ""


@dataclass(frozen=True)
class Kind:
    """One CustomResourceDefinition: everything but its fields, which ``model`` has.

    ``model`` has the fields ``spec`` and ``status``; ``status_default`` is what an object shows
    until somebody wrote its status.
    """

    model: type[Model]
    kind: str
    plural: str
    short_names: tuple[str, ...]
    columns: tuple[Column, ...]
    selectable: tuple[str, ...]
    status_default: dict[str, object]
    rules: tuple[Rule, ...] = ()
    categories: tuple[str, ...] = ("all", "torpor")
