"""Every input of the corpus, and some that hypothesis makes; `run.py` looks for more."""

import pytest
from fuzz.targets import CORPUS, TARGETS, kept
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
