"""Bookinfo's page and small decisions, without a server."""

import pytest

from meshlib_bookinfo import page
from meshlib_bookinfo.answer import Answer
from meshlib_bookinfo.books import PRODUCTS
from meshlib_bookinfo.productpage import _name
from meshlib_bookinfo.workload import forwarded

DETAILS = Answer(200, {"version": "v1", "pages": 200})


def reviews(rating: dict[str, object] | None, version: str = "v2") -> Answer:
    review = {"reviewer": "Antonia", "text": "Fine."} | ({} if rating is None else {"rating": rating})
    return Answer(200, {"version": version, "reviews": [review]})


def render(answer: Answer, user: str = "") -> str:
    return page.render(PRODUCTS[0], DETAILS, answer, user=user, version="v1")


@pytest.mark.parametrize(
    ("rating", "expected", "absent"),
    [
        (None, "Fine.", 'class="stars'),
        ({"stars": 4, "color": "black"}, '4 of 5 black stars">★★★★<span class="rest">★</span>', "red stars"),
        ({"stars": 5, "color": "red"}, '5 of 5 red stars">★★★★★<', "black stars"),
        ({"stars": 99, "color": "x"}, '5 of 5 black stars">★★★★★<', "99"),
        ({"error": "ratings are currently unavailable"}, "ratings are currently unavailable", 'class="stars'),
    ],
)
def test_stars(rating: dict[str, object] | None, expected: str, absent: str) -> None:
    html = render(reviews(rating))
    assert expected in html
    assert absent not in html


def test_failed_reviews_are_said_in_place_with_the_reason() -> None:
    html = render(Answer(504, reason="no response within the time of the route <UT>"))
    assert "Sorry, product reviews are currently unavailable." in html
    assert "<small>no response within the time of the route &lt;UT&gt;</small>" in html
    assert "<dt>Pages</dt><dd>200</dd>" in html
    assert '<tr id="by-reviews"><th scope="row">reviews</th><td class="version">nobody</td>' in html


def test_what_people_and_services_say_is_escaped() -> None:
    evil = Answer(200, {"version": "<i>", "reviews": [{"reviewer": "<script>", "text": "</p><script>"}]})
    html = render(evil, user="<script>alert(1)</script>")
    assert "<script>" not in html
    assert "<i>" not in html


def test_page_needs_nothing_from_elsewhere() -> None:
    html = render(reviews(None))
    assert "http:" not in html
    assert "https:" not in html
    assert "<script" not in html


def test_footer_says_who_answered_by_which_rule() -> None:
    answer = Answer(
        200,
        {"version": "v2", "reviews": [], "ratings_version": "v1"},
        rule="VirtualService default/reviews, vs.yml:12",
        endpoint="127.0.0.1:1",
    )
    html = render(answer)
    assert "127.0.0.1:1 · VirtualService default/reviews, vs.yml:12" in html
    assert '<tr id="by-ratings"><th scope="row">ratings</th><td class="version">v1</td>' in html


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        (" jason ", "jason"),
        ("Ann B.", "Ann B."),
        ("", ""),
        ("x" * 41, ""),
        ("a\nb", ""),
        ("café", ""),
        ("\x00", ""),
    ],
)
def test_a_name_can_travel_in_a_header(typed: str, name: str) -> None:
    assert _name(typed) == name


def test_only_what_should_travel_on_does() -> None:
    came = {"end-user": "maria", "user-agent": "Chrome", "cookie": "session=x", "host": "a"}
    assert forwarded(came) == {"end-user": "maria", "user-agent": "Chrome"}
    assert forwarded(came, **{"end-user": "jason"})["end-user"] == "jason"
