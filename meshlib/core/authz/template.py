"""Envoy's URI templates: `/books/{id=*}/pages/**` as a pattern for the whole path.

`*` stands for one segment, `**` for any text, slashes too, and no operator stands after it. A variable
`{name}` is one segment; `{name=template}` is what the template is.
"""

from meshlib.core.route.text import TextKind, TextMatch

_CHARACTERS = r"a-zA-Z0-9\-._~%!$&'()+,;:@="
_SEGMENT = f"[{_CHARACTERS}]+"
_REST = f"[{_CHARACTERS}/]*"
_LITERAL = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%!$&'()+,;:@=/")
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
MAX_VARIABLES = 5


def template_match(template: str) -> TextMatch:
    """The condition that a template is. ValueError: it is none."""
    if not template.startswith("/"):
        raise ValueError(f"{template!r} does not begin with a slash")
    pattern, variables, place = [], set(), 0
    rest_begun = False
    while place < len(template):
        mark = template[place]
        if rest_begun and mark in "*{":
            raise ValueError(f"{template!r} has another operator after **")
        if mark == "*":
            rest_begun = template.startswith("**", place)
            pattern.append(_REST if rest_begun else _SEGMENT)
            place += 2 if rest_begun else 1
        elif mark == "{":
            end = template.find("}", place)
            if end < 0:
                raise ValueError(f"{template!r} has a {{ without its }}")
            name, _, inner = template[place + 1 : end].partition("=")
            if not name or not _NAME.issuperset(name) or not name[0].isalpha() or name in variables:
                raise ValueError(f"{name!r} is no name of a variable, or is there twice")
            variables.add(name)
            rest_begun = inner.endswith("**")
            pattern.append(_variable(inner or "*", template))
            place = end + 1
        elif mark in _LITERAL:
            pattern.append("\\" + mark if not mark.isalnum() else mark)
            place += 1
        else:
            raise ValueError(f"{mark!r} can't stand in {template!r}")
    if len(variables) > MAX_VARIABLES:
        raise ValueError(f"{template!r} has more than {MAX_VARIABLES} variables")
    return TextMatch(TextKind.REGEX, "".join(pattern))


def _variable(inner: str, template: str) -> str:
    made = []
    parts = inner.split("/")
    for number, part in enumerate(parts):
        if part == "**" and number == len(parts) - 1:
            made.append(_REST)
        elif part == "*":
            made.append(_SEGMENT)
        elif part and _LITERAL.issuperset(part):
            made.append("".join(c if c.isalnum() else "\\" + c for c in part))
        else:
            raise ValueError(f"{part!r} can't stand in a variable of {template!r}")
    return "/".join(made)
