"""`dataclass`, as the standard library has it, for values that are frozen and have slots: made in a fraction
of the time.

An application waits for its first request while the library's values, a hundred of them, are made. The
standard library compiles each method of each class by itself (until Python 3.13), which takes most of that
time; here those that must be fast are compiled when they are first called, and the others are shared.

Rules:

- What type checkers see, and what `fields`, `replace`, `asdict`, `match`, copies and pickles do, is as of
  `dataclasses`. So is whatever a class says by itself.
- Any other kind of class, and one that is derived from a dataclass, goes to `dataclasses` as it is.
- Of two threads that are the first to call a method each compiles it; both are the same, and one stays.
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
        for method in (*_at_first_call(made), *_SHARED):
            if method.__name__ not in own:
                setattr(made, method.__name__, method)
        return made

    def _at_first_call(made):
        """`__init__`, `__eq__` and `__hash__`, each of which puts the compiled one in its place."""

        def __init__(self, *given, **named):  # noqa: N807
            _put(made, "__init__", *_init(made))(self, *given, **named)

        def __eq__(self, other):  # noqa: N807
            own = _compared(made)
            text = (
                "def __eq__(self, other):\n if other.__class__ is self.__class__:\n"
                f"  return ({own}) == ({own.replace('self.', 'other.')})\n return NotImplemented"
            )
            return _put(made, "__eq__", text, {})(self, other)

        def __hash__(self):  # noqa: N807
            return _put(made, "__hash__", f"def __hash__(self):\n return hash(({_compared(made)}))", {})(self)

        return __init__, __eq__, __hash__

    def _put(cls, name: str, text: str, known: dict[str, Any]):
        exec(text, known)  # noqa: S102 - of names of fields, as the standard library does it
        method = known[name]
        method.__qualname__, method.__module__ = f"{cls.__qualname__}.{name}", cls.__module__
        setattr(cls, name, method)
        return method

    def _compared(cls) -> str:
        return "".join(f"self.{field.name}," for field in dataclasses.fields(cls) if field.compare)

    def _init(cls):
        """The text of `__init__`, and what is known to it."""
        known: dict[str, Any] = {"_absent": dataclasses.MISSING}
        given, body = ["self"], []
        for field in dataclasses.fields(cls):
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
        return f"def __init__({', '.join(given)}):\n {'; '.join(body) or 'pass'}", known

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
