"""The demo's edits of the tutorial's file: the text stays, some lines are added."""

from importlib.resources import files

import pytest
import yaml

from meshlib.cli.demo_edit import FILE, broken, with_weights

TEXT = (files("meshlib_bookinfo") / "mesh" / FILE).read_text()


def test_weights_are_put_on_the_last_route_to_reviews() -> None:
    before = list(yaml.safe_load_all(TEXT))
    after = list(yaml.safe_load_all(with_weights(TEXT, 80, 20)))
    route = next(d for d in after if d["metadata"]["name"] == "reviews")["spec"]["http"][-1]["route"]
    assert route == [
        {"destination": {"host": "reviews", "subset": "v1"}, "weight": 80},
        {"destination": {"host": "reviews", "subset": "v2"}, "weight": 20},
    ]
    others = [d for d in before if d["metadata"]["name"] != "reviews"]
    assert [d for d in after if d["metadata"]["name"] != "reviews"] == others


def test_rest_of_the_route_stays() -> None:
    before = list(yaml.safe_load_all(TEXT))
    after = list(yaml.safe_load_all(with_weights(TEXT, 0, 100)))
    for was, now in zip(before, after, strict=True):
        del was["spec"]["http"][-1]["route"], now["spec"]["http"][-1]["route"]
        assert was == now


def test_broken_edit_says_which_line_it_broke() -> None:
    text, line = broken(TEXT)
    assert text.splitlines()[line - 1].strip() == "weight: eighty"


def test_a_file_without_that_route_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="has no route to reviews v1"):
        with_weights("kind: Service\n", 1, 1)
