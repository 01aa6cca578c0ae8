"""Stored objects to values and back: raw dictionaries in, models out.

Tolerant where another release may have written: fields we do not know are ignored. Strict about
what we do know: a stored object that breaks today's rules is refused with the field's name, and its
guest is left as it is. What does not live here: the rules (they are in the models).
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from controller.api.instance import Instance
from controller.api.meta import Model
from controller.api.spec import InstanceSpec
from controller.api.status import InstanceStatus
from controller.errors import Rejected

M = TypeVar("M", bound=Model)


def parse_instance(raw: Mapping[str, Any]) -> Instance:
    """The Instance that the API server sent. Raises Rejected(SpecInvalid) naming the field."""
    return _validate(Instance, raw, "")


def parse_spec(raw: Mapping[str, Any]) -> InstanceSpec:
    """The value of ``spec``. Raises Rejected(SpecInvalid) naming the field."""
    return _validate(InstanceSpec, raw, "spec.")


def parse_status(raw: Mapping[str, Any]) -> InstanceStatus:
    """The value of ``status``; an empty one for ``{}``. Raises Rejected(SpecInvalid)."""
    return _validate(InstanceStatus, raw, "status.")


def to_wire(value: Model) -> dict[str, Any]:
    """``value`` as the API server takes it: camelCase keys, nothing that is None."""
    return value.model_dump(mode="json", by_alias=True, exclude_none=True)


def _validate(model: type[M], raw: Mapping[str, Any], prefix: str) -> M:
    try:
        return model.model_validate(raw)
    except ValidationError as err:
        first = err.errors(include_url=False, include_context=False)[0]
        field = (prefix + ".".join(str(part) for part in first["loc"])).rstrip(".")
        found = repr(first["input"])[:60]
        raise Rejected(
            f"{field}: {first['msg']}; found {found}; correct it or create a new Instance",
            reason="SpecInvalid",
        ) from err
