"""What the kinds share: the model base, CEL rules, quantities, conditions.

What does not live here: any field of one kind, and the way from models to YAML (``schema``).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from controller.errors import Rejected

INT64_MAX: Final = 2**63 - 1

_SUFFIXES: Final[Mapping[str, Fraction]] = {
    "": Fraction(1),
    **{unit: Fraction(1000) ** (n + 1) for n, unit in enumerate("kMGTPE")},
    **{f"{unit}i": Fraction(1024) ** (n + 1) for n, unit in enumerate("KMGTPE")},
    **{unit: Fraction(1, 1000 ** (n + 1)) for n, unit in enumerate("mun")},
}
# Three digits of exponent are more than int64 can hold, and bound the arithmetic.
_QUANTITY: Final = re.compile(
    r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:([KMGTPE]i|[kMGTPEmun])|[eE]([+-]?[0-9]{1,3}))?"
)


@dataclass(frozen=True)
class Rule:
    """One CEL rule of a schema, and what it tells the user whose object breaks it."""

    rule: str
    message: str
    path: str | None = None  # of the field to blame, relative to where the rule stands

    def keywords(self) -> dict[str, str]:
        """The rule as the API server reads it."""
        path = {} if self.path is None else {"fieldPath": self.path}
        return {"rule": self.rule, "message": self.message, **path}


def rules(*given: Rule, **extra: Any) -> dict[str, Any]:
    """What ``json_schema_extra`` takes to attach CEL rules (and other schema keywords)."""
    return {**extra, "x-kubernetes-validations": [rule.keywords() for rule in given]}


def listed_by(key: str) -> dict[str, Any]:
    """Schema keywords of a list whose items are merged by ``key``, so writers do not collide."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


class Model(BaseModel):
    """Base of every API model: camelCase on the wire, frozen.

    Fields it does not know are ignored: a newer operator may have written them. The API server is
    the one that refuses unknown fields, from the schema.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_alias=True,
        validate_by_name=True,
        serialize_by_alias=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
    )


Int32 = Annotated[int, Field(json_schema_extra={"format": "int32"})]
Quantity = Annotated[
    int | str, Field(json_schema_extra={"x-kubernetes-int-or-string": True, "maxLength": 32})
]
Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
DnsLabel = Annotated[
    str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
]
DnsSubdomain = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    ),
]
Digest = Annotated[str, Field(max_length=71, pattern=r"^sha256:[0-9a-f]{64}$")]


def parse_quantity(value: str | int) -> int:
    """The whole number of bytes (or bytes per second) that a Kubernetes quantity says, exactly.

    Raises Rejected for anything else: not a quantity, a fraction of a byte, negative, above int64.
    """
    number = Fraction(value) if type(value) is int else _fraction(value)
    if number.denominator != 1:
        raise Rejected(f"{value!r} is not a whole number of bytes; write for example 512Mi or 1Gi")
    if not 0 <= number <= INT64_MAX:
        raise Rejected(f"{value!r} is out of range: 0 to {INT64_MAX} bytes")
    return int(number)


def format_quantity(number: int) -> str:
    """The shortest binary form that ``parse_quantity`` reads back to ``number``: 1Gi, 1536Mi, 7."""
    size, suffix = number, ""
    for unit in ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"):
        if size == 0 or size % 1024:
            break
        size, suffix = size // 1024, unit
    return f"{size}{suffix}"


def _fraction(value: object) -> Fraction:
    text = value if isinstance(value, str) else ""
    found = _QUANTITY.fullmatch(text) if len(text) <= 32 else None
    if found is None:
        raise Rejected(f"{str(value)[:40]!r} is not a quantity; write for example 512Mi or 1Gi")
    number, suffix, exponent = found.groups()
    if exponent is not None:
        return Fraction(number) * Fraction(10) ** int(exponent)
    return Fraction(number) * _SUFFIXES[suffix or ""]


class Condition(Model):
    """One aspect of what is, as metav1.Condition has it."""

    type: Annotated[
        str, Field(min_length=1, max_length=316, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_./]*)$")
    ]
    """What the condition is about, for example Ready."""
    status: Literal["True", "False", "Unknown"]
    """True, False or Unknown."""
    observed_generation: int | None = Field(None, ge=0)
    """The metadata.generation that the condition was computed from."""
    last_transition_time: Timestamp
    """When status last changed."""
    reason: Annotated[
        str,
        Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"),
    ]
    """Why, as one CamelCase word that programs may rely on."""
    message: Annotated[str, Field(max_length=32768)]
    """Why, as one sentence for people."""
