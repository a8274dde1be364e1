"""What the fields of every kind are made of: the spellings, numbers, durations and shared messages.

Rules:
- An attribute is the proto field's name; JSON may spell it so or in lowerCamelCase.
- A field that is null is a field that is not there.
- Unknown fields are refused, numbers and booleans are not taken from text, values are frozen.
- Durations are seconds as float. What is optional in the proto is None when unset.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from meshlib.control.istio.duration import seconds


def camel(name: str) -> str:
    """The JSON name of a proto field: `http1_max_pending_requests` is `http1MaxPendingRequests`."""
    head, *rest = name.rstrip("_").split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in rest)


class Spec(BaseModel):
    """Any message of the API."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=camel,
        validate_by_name=True,
        validate_by_alias=True,
        allow_inf_nan=False,
    )

    one_of: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Groups of attributes of which at most one may be set."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and any(item is None for item in value.values()):
            return {key: item for key, item in value.items() if item is not None}
        return value

    @model_validator(mode="after")
    def _at_most_one(self) -> "Spec":
        for group in self.one_of:
            given = [camel(name) for name in group if name in self.model_fields_set]
            if len(given) > 1:
                raise PydanticCustomError(
                    "one_of",
                    "more than one of a choice is set",
                    {"found": ", ".join(given), "allowed": "one of " + ", ".join(map(camel, group))},
                )
        return self


def fields_of(model: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """Every spelling of every field of a message, with the field."""
    known: dict[str, FieldInfo] = {}
    for name, info in model.model_fields.items():
        known[info.alias or camel(name)] = info
        known.setdefault(name.rstrip("_"), info)
    return known


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "not a number", {"allowed": "a whole number"})
    if isinstance(value, str):
        raise PydanticCustomError("int_type", "not a number", {"allowed": "a whole number, without quotes"})
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise PydanticCustomError("float_type", "not a number", {"allowed": "a number, without quotes"})
    return value


def _duration(value: Any) -> float:
    if not isinstance(value, str):
        raise PydanticCustomError("duration", "not a duration", {"allowed": DURATIONS})
    try:
        return seconds(value)
    except ValueError:
        raise PydanticCustomError("duration", "not a duration", {"allowed": DURATIONS}) from None


DURATIONS = "a duration with its unit, such as 500ms, 10s, 1m30s or 1h"

Int32 = Annotated[int, BeforeValidator(_no_bool), Field(ge=-(2**31), le=2**31 - 1)]
UInt32 = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=2**32 - 1)]
UInt64 = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=2**64 - 1)]
Number = Annotated[float, BeforeValidator(_number)]
Bool = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True)]
Seconds = Annotated[float, BeforeValidator(_duration)]
"""A duration in seconds."""

Labels = Mapping[Text, Text]

PortKey = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""A port number as the key of a mapping; keys are text."""


class StringMatch(Spec):
    """A condition on text. With nothing set (`{}`) any value that is present matches."""

    one_of = (("exact", "prefix", "regex"),)

    exact: Text | None = None
    prefix: Text | None = None
    regex: Text | None = None


class PortSelector(Spec):
    """A port of a destination, by number."""

    number: UInt32 = 0


class Percent(Spec):
    """0.0 to 100.0."""

    value: Number = 0.0


class WorkloadSelector(Spec):
    """The workloads that carry all the labels; used by the kinds of the networking group."""

    labels: Labels = Field(default_factory=dict)


class LabelSelector(Spec):
    """The workloads that carry all the labels; used by the kinds of the other groups."""

    match_labels: Labels = Field(default_factory=dict)


class TargetReference(Spec):
    """A policy's target by name: a Gateway, GatewayClass, Service or ServiceEntry."""

    group: Text = ""
    kind: Text = ""
    name: Text = ""
    namespace: Text = ""
