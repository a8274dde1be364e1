"""The product page as HTML: complete without scripts, and without anything from elsewhere.

Whatever came from a person or from another service is escaped on its way in.
"""

from html import escape
from typing import Any

from meshlib_bookinfo.answer import Answer

STARS = 5

IMPRINT = (
    ("type", "Type"),
    ("pages", "Pages"),
    ("publisher", "Publisher"),
    ("language", "Language"),
    ("written", "Written"),
    ("isbn", "ISBN"),
)


def render(book: dict[str, Any], details: Answer, reviews: Answer, *, user: str, version: str) -> str:
    """The whole page."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(book["title"])} · Bookinfo</title>
<link rel="icon" href="/static/favicon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/static/bookinfo.css">
</head>
<body>
<header class="bar">
  <a class="brand" href="/productpage">Bookinfo</a>
  {_session(user)}
</header>
<main>
  <section class="hero">
    {_COVER}
    <div>
      <p class="kicker">Play</p>
      <h1>{escape(book["title"])}</h1>
      <p class="author">{escape(book["author"])}</p>
      <p class="summary">{escape(book["summary"])}</p>
    </div>
  </section>
  <div class="columns">
    <section class="card details" id="details">
      <h2>Book details</h2>
      {_details(details)}
    </section>
    <section class="card reviews" id="reviews">
      <h2>Book reviews</h2>
      {_reviews(reviews)}
    </section>
  </div>
</main>
<footer>
  <h2>Who answered</h2>
  <table>
    <tr><th scope="row">productpage</th><td class="version">{escape(version)}</td><td></td></tr>
    {_answered("details", details)}
    {_answered("reviews", reviews)}
    {_ratings(reviews)}
  </table>
</footer>
</body>
</html>
"""


def _session(user: str) -> str:
    if user:
        return (
            f'<form class="session" action="/logout" method="post"><span>Logged in as '
            f'<strong id="user">{escape(user)}</strong></span><button>Log out</button></form>'
        )
    return (
        '<form class="session" action="/login" method="post"><label for="username">Name</label>'
        '<input id="username" name="username" maxlength="40" autocomplete="username" placeholder="jason"'
        " required>"
        "<button>Log in</button></form>"
    )


def _sorry(what: str, reason: str) -> str:
    return (
        f'<div class="sorry" role="alert"><p>Sorry, product {what} are currently unavailable.</p>'
        f"<small>{escape(reason)}</small></div>"
    )


def _details(details: Answer) -> str:
    if details.reason:
        return _sorry("details", details.reason)
    rows = "".join(
        f"<dt>{title}</dt><dd>{escape(str(details.body[key]))}</dd>"
        for key, title in IMPRINT
        if key in details.body
    )
    return f"<dl>{rows}</dl>"


def _reviews(reviews: Answer) -> str:
    if reviews.reason:
        return _sorry("reviews", reviews.reason)
    return "".join(
        f"<blockquote><p>{escape(str(review['text']))}</p>"
        f"<footer><cite>{escape(str(review['reviewer']))}</cite>{_stars(review.get('rating'))}</footer></blockquote>"
        for review in reviews.body.get("reviews", ())
    )


def _stars(rating: dict[str, Any] | None) -> str:
    if rating is None:
        return ""
    if "error" in rating:
        return f'<small class="nostars">{escape(str(rating["error"]))}</small>'
    given = max(0, min(STARS, int(rating["stars"])))
    color = "red" if rating.get("color") == "red" else "black"
    drawn = "★" * given + f'<span class="rest">{"★" * (STARS - given)}</span>'
    return (
        f'<span class="stars {color}" role="img" aria-label="{given} of {STARS} {color} stars">{drawn}</span>'
    )


def _answered(name: str, answer: Answer) -> str:
    version = escape(answer.version or "nobody")
    how = escape(" · ".join(part for part in (answer.endpoint, answer.rule) if part))
    return (
        f'<tr id="by-{name}"><th scope="row">{name}</th><td class="version">{version}</td>'
        f"<td><small>{how}</small></td></tr>"
    )


def _ratings(reviews: Answer) -> str:
    if "ratings_version" not in reviews.body:
        return ""
    version = escape(str(reviews.body["ratings_version"] or "nobody"))
    return (
        f'<tr id="by-ratings"><th scope="row">ratings</th><td class="version">{version}</td>'
        "<td><small>asked by reviews</small></td></tr>"
    )


_COVER = """<svg class="cover" viewBox="0 0 180 250" role="img" aria-label="Cover: two masks that look alike">
  <rect width="180" height="250" rx="6" fill="#1f3a4d"/>
  <rect x="10" y="10" width="160" height="230" rx="3" fill="none" stroke="#e6c98a" stroke-width="1.5"/>
  <g fill="#f4ead4">
    <path d="M34 78h52v34q0 38-26 38t-26-38z"/>
    <path d="M94 96h52v34q0 38-26 38t-26-38z" fill="#e6c98a"/>
  </g>
  <g fill="#1f3a4d">
    <ellipse cx="50" cy="102" rx="6" ry="4"/><ellipse cx="72" cy="102" rx="6" ry="4"/>
    <path d="M48 124q13 14 26 0q-13 8-26 0z"/>
    <ellipse cx="110" cy="120" rx="6" ry="4"/><ellipse cx="132" cy="120" rx="6" ry="4"/>
    <path d="M108 148q13-14 26 0q-13-8-26 0z"/>
  </g>
  <g fill="#e6c98a" font-family="Georgia, serif" text-anchor="middle">
    <text x="90" y="42" font-size="15">The Comedy</text>
    <text x="90" y="60" font-size="15">of Errors</text>
    <text x="90" y="218" font-size="9" letter-spacing="2">W. SHAKESPEARE</text>
  </g>
</svg>"""
