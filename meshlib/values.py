"""`dataclass`, as the standard library has it, for values that are frozen and have slots: made in a third of
the time.

An application waits for its first request while the library's values, a hundred of them, are made. The
standard library compiles each method of each class by itself (until Python 3.13), which takes most of that
time; here the three that must be fast are compiled at once, and the others are shared.

Rules:

- What type checkers see, and what `fields`, `replace`, `asdict`, `match`, copies and pickles do, is as of
  `dataclasses`. So is whatever a class says by itself, of the methods that are shared.
- Any other kind of class, and one that is derived from a dataclass, goes to `dataclasses` as it is.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:
    import dataclasses

    def dataclass(cls=None, /, **options):
        """As `dataclasses.dataclass`."""
        if options != {"frozen": True, "slots": True}:
            return dataclasses.dataclass(cls, **options)
        return _frozen if cls is None else _frozen(cls)

    _bare = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True)

    def _frozen(cls):
        if any(map(dataclasses.is_dataclass, cls.__bases__)):
            return dataclasses.dataclass(frozen=True, slots=True)(cls)
        own = vars(cls).keys()
        made = _bare(cls)
        made.__dataclass_params__.frozen = True  # a class that is derived from it may be, too
        fields = dataclasses.fields(made)
        for method in (*_compiled(made, fields), *_SHARED):
            if method.__name__ not in own:
                setattr(made, method.__name__, method)
        return made

    def _compiled(cls: type, fields: tuple[Any, ...]) -> list[Any]:
        """`__init__`, `__eq__` and `__hash__`."""
        known: dict[str, Any] = {"_absent": dataclasses.MISSING}
        given, body = [], []
        for field in fields:
            name = field.name
            known[f"_set_{name}"] = vars(cls)[name].__set__
            value = name
            if field.default is not dataclasses.MISSING:
                known[f"_default_{name}"] = field.default
                given += [f"{name}=_default_{name}"] if field.init else []
                value = name if field.init else f"_default_{name}"
            elif field.default_factory is not dataclasses.MISSING:
                known[f"_make_{name}"] = field.default_factory
                given += [f"{name}=_absent"] if field.init else []
                value = f"_make_{name}()"
                value = f"{value} if {name} is _absent else {name}" if field.init else value
            elif field.init:
                given.append(name)
            else:
                continue  # `__post_init__` sets it
            body.append(f"_set_{name}(self, {value})")
        if hasattr(cls, "__post_init__"):
            body.append("self.__post_init__()")
        own = "".join(f"self.{field.name}," for field in fields if field.compare)
        text = (
            f"def __init__({', '.join(['self', *given])}):\n {'; '.join(body) or 'pass'}\n"
            f"def __eq__(self, other):\n if other.__class__ is self.__class__:\n"
            f"  return ({own}) == ({own.replace('self.', 'other.')})\n return NotImplemented\n"
            f"def __hash__(self):\n return hash(({own}))\n"
        )
        exec(text, known)  # noqa: S102 - of names of fields, as the standard library does it
        found = [known["__init__"], known["__eq__"], known["__hash__"]]
        for method in found:
            method.__qualname__, method.__module__ = f"{cls.__qualname__}.{method.__name__}", cls.__module__
        return found

    def __repr__(self):  # noqa: N807
        shown = (f"{one.name}={getattr(self, one.name)!r}" for one in dataclasses.fields(self) if one.repr)
        return f"{self.__class__.__qualname__}({', '.join(shown)})"

    def __setattr__(self, name, value):  # noqa: N807
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name):  # noqa: N807
        raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")

    def __getstate__(self):  # noqa: N807
        return [getattr(self, one.name) for one in dataclasses.fields(self)]

    def __setstate__(self, state):  # noqa: N807
        for one, value in zip(dataclasses.fields(self), state, strict=True):
            object.__setattr__(self, one.name, value)

    _SHARED = (__repr__, __setattr__, __delattr__, __getstate__, __setstate__)
