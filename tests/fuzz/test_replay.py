"""Every input of the corpus, and some that hypothesis makes; `run.py` looks for more."""

import pytest
from fuzz.targets import CORPUS, TARGETS, chosen, kept
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    corpus = kept(name)
    assert corpus
    for number, data in enumerate(corpus, 1):
        try:
            TARGETS[name](data)
        except Exception as error:
            error.add_note(f"tests/fuzz/corpus/{name}.txt:{number}")
            raise


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes(name: str) -> None:
    @settings(max_examples=100)
    @given(st.binary(max_size=120))
    def run(data: bytes) -> None:
        TARGETS[name](data)

    run()


def test_there_is_no_corpus_without_a_target() -> None:
    assert {path.stem for path in CORPUS.iterdir()} == set(TARGETS)


def test_what_is_in_a_corpus_stays_whatever_is_found() -> None:
    old, new = [b"old", b"a long one"], [bytes((number,)) * number for number in range(1, 100)]
    made = chosen(old, new, 20)
    assert set(old) <= set(made) <= {*old, *new}
    assert 15 < len(made) <= 20
    assert max(map(len, made)) > 90
    assert chosen(old, new, 2) == chosen(old, [], 20) == sorted(old, key=len)
