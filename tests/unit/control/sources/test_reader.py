"""The YAML reader: values, lines, and the bounds."""

import json
import subprocess
import sys

import pytest

from meshlib.control.sources.reader import MAX_BYTES, UnreadableError, decode, read


def test_lines_of_keys_and_items() -> None:
    (raw,) = read("# c\na:\n- b: 1\n- c\nd: {e: f}\n")
    assert raw.value == {"a": [{"b": 1}, "c"], "d": {"e": "f"}}
    assert raw.lines == {("a",): 2, ("a", 0): 3, ("a", 0, "b"): 3, ("a", 1): 4, ("d",): 5, ("d", "e"): 5}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", True),
        ("0x1F", 31),
        ("010", 8),
        ("08", "08"),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("'1'", "1"),
        ("1.5", 1.5),
        ("{8080: a}", {"8080": "a"}),
        ("{<<: {a: 1, b: 2}, a: 3}", {"a": 3, "b": 2}),
        ("[&x {a: 1}, *x]", [{"a": 1}, {"a": 1}]),
        ("!!python/object:os.system x", "x"),
    ],
)
def test_values(text: str, value: object) -> None:
    (raw,) = read(text)
    assert raw.value == value


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: [1", 1, "not YAML"),
        ("a:\n  b: 1\n\tc: 2", 3, "a tab is used to indent"),
        ("[" * 1_000_000, 1, "nested too deeply"),
        ("- " * 1_000_000, 1, "nested too deeply"),
        (BOMB, 6, "too many values in one document"),
        ("a: *x", 1, "*x stands before or inside its anchor"),
        ("&x [*x]", 1, "*x stands before or inside its anchor"),
        ("a: 1\n? [b]\n: c", 2, "a key that is a mapping or a list"),
        ("a: \x00", 1, "not YAML"),
    ],
)
def test_what_is_refused(text: str, line: int, message: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        list(read(text))
    assert caught.value.message.startswith(message)
    assert caught.value.line in (line, line + 1)


def test_a_key_that_stands_twice() -> None:
    (raw,) = read("a:\n  b: 1\n  b: 2")
    assert raw.twice == [(3, ("a", "b"), 2)]


def test_a_file_that_is_too_big_or_no_text() -> None:
    with pytest.raises(UnreadableError, match="a file of"):
        decode(b"a" * (MAX_BYTES + 1))
    with pytest.raises(UnreadableError, match="0xff is not UTF-8") as caught:
        decode(b"a: 1\nb: \xff")
    assert caught.value.line == 2


MEASURED = """
import json, resource, time
from meshlib.control.sources.reader import MAX_BYTES, UnreadableError, read

text = ("- {a: b}\\n" * (MAX_BYTES // 9))[:MAX_BYTES]
before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
try:
    list(read(text))
except UnreadableError as error:
    said = str(error)
seconds, memory = time.thread_time() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([said, seconds, memory]))
"""


def test_ten_megabytes_are_bounded() -> None:
    """In a process of its own, whose memory is all for this; it is counted in KiB."""
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    said, seconds, memory = json.loads(done.stdout)
    assert "too many values" in said
    assert (seconds < 20, memory < 500 * 1024) == (True, True), (seconds, memory)
