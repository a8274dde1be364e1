"""The words and signs of a CEL expression, from left to right."""

_TWO = ("&&", "||", "==", "!=", "<=", ">=")
_ONE = "<>+-*/%!?:()[],."
_ESCAPES = {**dict.fromkeys("\\'\"`?"), "n": "\n", "r": "\r", "t": "\t"}

Token = tuple[str, str, int]
"""Kind (`name`, `text`, `number`, or the sign itself), what it says, and where."""


def tokens_of(text: str) -> list[Token]:
    """All, and one without a kind for the end. ValueError: a letter that begins none."""
    found: list[Token] = []
    place = 0
    while place < len(text):
        letter = text[place]
        begin = place
        if letter.isspace():
            place += 1
        elif text[place : place + 2] in _TWO:
            place += 2
            found.append((text[begin:place], "", begin))
        elif letter in "'\"":
            value, place = _quoted(text, place)
            found.append(("text", value, begin))
        elif letter.isascii() and (letter.isalnum() or letter == "_"):
            of_number = letter.isdigit()
            while _is_of_word(text[place : place + 1], dot=of_number):
                place += 1
            found.append(("number" if of_number else "name", text[begin:place], begin))
        elif letter in _ONE:
            place += 1
            found.append((letter, "", begin))
        else:
            raise ValueError(f"{letter!r} at {begin + 1} is not expected")
    return [*found, ("", "", len(text))]


def _is_of_word(letter: str, *, dot: bool) -> bool:
    return letter.isascii() and (letter.isalnum() or letter == "_" or (dot and letter == "."))


def _quoted(text: str, place: int) -> tuple[str, int]:
    """The text between quotation marks, and the place after it."""
    mark, begin, found = text[place], place, ""
    if text.startswith(mark * 3, place):
        raise ValueError(f"a text in three quotation marks at {begin + 1} is not supported")
    place += 1
    while place < len(text) and text[place] != mark:
        letter = text[place]
        if letter == "\\":
            place += 1
            letter = text[place : place + 1]
            if letter not in _ESCAPES:
                raise ValueError(f"the escape \\{letter} at {place} is not supported")
            letter = _ESCAPES[letter] or letter
        found += letter
        place += 1
    if place >= len(text):
        raise ValueError(f"the text that begins at {begin + 1} has no end")
    return found, place + 1
