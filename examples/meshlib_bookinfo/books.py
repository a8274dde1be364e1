"""What the shop knows: one book, what can be said of it, and what two readers think."""

from typing import Any

PRODUCTS: list[dict[str, Any]] = [
    {
        "id": 0,
        "title": "The Comedy of Errors",
        "author": "William Shakespeare",
        "summary": (
            "Two pairs of twins, parted by a shipwreck when they were small, spend one long day in the same "
            "town without knowing it. Everybody greets the wrong man, the wrong man is billed for a gold "
            "chain, and by the fifth act not even the twins are sure who they are. The shortest of "
            "Shakespeare's plays, and the one with the most doors."
        ),
    }
]

DETAILS: dict[str, Any] = {
    "author": "William Shakespeare",
    "written": "about 1594",
    "type": "paperback",
    "pages": 200,
    "publisher": "Ephesus Books",
    "language": "English",
    "isbn": "978-0-00-000000-2",
}

REVIEWS: list[dict[str, str]] = [
    {
        "reviewer": "Antonia",
        "text": "I read it on the train, laughed past my stop, and was taken for someone else on the way.",
    },
    {
        "reviewer": "Dromio",
        "text": "Very funny for whoever does not get the beatings. Had I known, my brother could have gone.",
    },
]

RATINGS: dict[str, int] = {"Antonia": 5, "Dromio": 4}


def product(product_id: int) -> dict[str, Any] | None:
    """The product of that number, or None."""
    return next((known for known in PRODUCTS if known["id"] == product_id), None)
