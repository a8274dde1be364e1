"""A number in a header, as Envoy reads it: blanks around it and one plus sign are no harm."""


def number(value: bytes | None, largest: int = 2**64 - 1) -> int | None:
    """The number, or None: there is no header, it holds something else, or more than `largest`."""
    if value is None:
        return None
    digits = value.strip().removeprefix(b"+")
    if not digits.isdigit():
        return None
    digits = digits.lstrip(b"0") or b"0"
    found = int(digits) if len(digits) <= 20 else largest + 1
    return found if found <= largest else None
