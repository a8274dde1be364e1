"""pydantic's errors in the words of this project: what is wrong, what was found, what is allowed."""

import difflib
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from meshlib.control.istio.document import FieldPath
from meshlib.control.istio.fields import camel, fields_of
from meshlib.control.istio.problem import shorten

REMOVED_FIELDS = {
    "websocketUpgrade": "removed from Istio: websockets are always on",
    "appendHeaders": "removed from Istio: use headers.request.add",
    "appendRequestHeaders": "removed from Istio: use headers.request.add",
    "removeResponseHeaders": "removed from Istio: use headers.response.remove",
    "appendResponseHeaders": "removed from Istio: use headers.response.add",
}

_TYPES = {
    "string_type": ("not text", "text; put it in quotes"),
    "bool_type": ("not a boolean", "true or false"),
    "tuple_type": ("not a list", "a list"),
    "mapping_type": ("not a mapping", "a mapping"),
    "dict_type": ("not a mapping", "a mapping"),
    "model_type": ("not a mapping", "a mapping"),
    "model_attributes_type": ("not a mapping", "a mapping"),
    "int_type": ("not a whole number", "a whole number"),
    "int_from_float": ("not a whole number", "a whole number"),
    "int_parsing": ("not a whole number", "a whole number"),
    "int_parsing_size": ("too big a number", "a smaller number"),
    "float_type": ("not a number", "a number"),
    "finite_number": ("not a finite number", "a finite number"),
}


def known_spelling(value: Mapping[str, Any], name: str | int) -> str | None:
    """The key under which a mapping holds a field: by its JSON name or its proto name."""
    text = str(name)
    plain = text.rstrip("_")
    return next((key for key in (text, camel(text), plain) if key in value), None)


def as_written(value: Any, path: FieldPath) -> FieldPath:
    """A path of attribute or JSON names in the spelling that the value uses, as far as it goes."""
    found: list[str | int] = []
    for part in path:
        if isinstance(value, Mapping):
            name = known_spelling(value, part)
            if name is None:
                return (*found, camel(part)) if isinstance(part, str) else tuple(found)
            found.append(name)
            value = value[name]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            found.append(part)
            value = value[part]
        else:
            break
    return tuple(found)


def explain(error: ErrorDetails, model: type[BaseModel]) -> tuple[str, str, str]:
    """(message, found, allowed) of one error of a model."""
    kind, context = error["type"], error.get("ctx", {})
    found = shorten(error["input"])
    if kind == "extra_forbidden":
        return _unknown_field(str(error["loc"][-1]), model_at(model, error["loc"][:-1]))
    if kind == "enum":
        return "unknown value", found, str(context.get("expected", "")).replace("'", "").replace(" or ", ", ")
    if kind in ("greater_than_equal", "less_than_equal"):
        bound = context.get("ge", context.get("le"))
        return "out of range", found, f"at {'least' if 'ge' in context else 'most'} {bound}"
    if "allowed" in context:
        return error["msg"], str(context.get("found", found)), str(context["allowed"])
    message, allowed = _TYPES.get(kind, (error["msg"], ""))
    return message, found, allowed


def _unknown_field(name: str, model: type[BaseModel] | None) -> tuple[str, str, str]:
    if name in REMOVED_FIELDS:
        return REMOVED_FIELDS[name], shorten(name), "leave it out"
    if model is None:
        return "unknown field", shorten(name), ""
    names = sorted({info.alias or key for key, info in fields_of(model).items()})
    near = difflib.get_close_matches(camel(name), names, 1)
    return "unknown field", shorten(name), (f"did you mean {near[0]}? " if near else "") + ", ".join(names)


def model_at(model: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The message at a path of a message."""
    found: type[BaseModel] | None = model
    inner: Any = None
    for part in path:
        if found is None:
            inner = get_args(inner)[-1] if get_args(inner) else None
            found = _model_in(inner)
            continue
        info = fields_of(found).get(str(part))
        if info is None:
            return None
        inner = info.annotation
        found = None if _is_collection(inner) else _model_in(inner)
        if _is_collection(inner):
            inner = _collection(inner)
    return found


def _collection(annotation: Any) -> Any:
    """tuple[X, ...] in the order (…, X), so that the last argument is always the item."""
    arguments = [arg for arg in get_args(annotation) if arg is not Ellipsis]
    return Mapping[str, arguments[-1]]  # type: ignore[valid-type]


def _is_collection(annotation: Any) -> bool:
    return get_origin(annotation) in (tuple, Mapping) or str(annotation).startswith(
        "collections.abc.Mapping["
    )


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_in(arg))), None)
