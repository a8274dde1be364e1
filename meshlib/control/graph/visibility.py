"""Who may see a document: exportTo, and the mesh's defaults for it."""

from meshlib.control.istio.document import AnyDocument


def exported_to(values: tuple[str, ...], default: tuple[str, ...]) -> tuple[str, ...]:
    """The exportTo in force; an empty one is the mesh's default."""
    return values or default or ("*",)


def visible(values: tuple[str, ...], owner: str, namespace: str) -> bool:
    """Whether what `owner`, a namespace, exports to `values` is seen from `namespace`."""
    if "*" in values:
        return True
    return ("." in values and owner == namespace) or namespace in values


def rank(values: tuple[str, ...], owner: str, namespace: str) -> int:
    """The order in which a namespace prefers what it sees: its own, what is for it alone, what is for all."""
    if "*" in values:
        return 2
    return 0 if owner == namespace else 1


def by_age(documents: list[AnyDocument]) -> list[AnyDocument]:
    """Oldest first, then by name and namespace."""
    return sorted(documents, key=lambda document: document.age)
