"""Random RBAC filters, and requests near to what they ask for."""

import random
from typing import Any

from support.oracle_authz import DNS, IDENTITIES, PATHS, Ask, Case, From, World
from support.oracle_http import Call

from meshlib.xds import pb

Values = dict[str, Any]
ASKS = 6
PATH_TEXTS = (
    "/",
    "/a",
    "/a/b",
    "/admin",
    "/admin/x",
    "/public",
    "/A",
    "/a//b",
    "/a%2fb",
    "/books/1/pages",
    "/a:b",
    "/a%3Ab",
)
HOSTS = ("web", "web.example.com", "Web.example.com", "api:8080", "x.example.com")
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS")
HEADERS = ("x-a", "x-b", "X-Mixed", "user-agent", "x-forwarded-for", "cookie")
TEXTS = ("1", "abc", "ABC", "a,b", "5", "-7", "x y", "")
REGEXES = (".*", "a.*", "[0-9]+", "(?i)abc", ".+b", "/a.*", ".*/ns/default/.*", "spiffe://.*/sa/web")
SOURCES = ("127.0.0.1", "127.0.0.5", "127.0.1.9")
DESTINATIONS = ("127.0.0.1", "127.0.0.2")
NAMES = ("server.example", "other.example", "SERVER.example")
BLOCKS = (
    ("127.0.0.1", 32),
    ("127.0.0.0", 24),
    ("127.0.0.4", 30),
    ("127.0.0.0", 8),
    ("10.0.0.0", 8),
    ("::", 0),
)
FORWARDED = (
    "10.1.2.3",
    "10.1.2.3, 127.0.0.5",
    "nonsense",
    "127.0.1.9,10.0.0.1",
    "2001:db8::1",
    "10.0.0.9:80",
    "",
)
TEMPLATES = ("/books/{id}/pages", "/a/*", "/**", "/books/**", "/*/b", "/admin/{p=**}", "/{a}/{b}")
TRICKS = (
    *("/admin/../a", "/a/%2e%2e/admin", "//admin", "/a//b", "/./admin", "/admin/", "/ADMIN", "/admin?x=/a"),
    *(
        "/a%2Fb",
        "/a%5cb",
        "/admin;x",
        "/admin/..;/a",
        "/%61dmin",
        "/a/b?y#z",
        "/a\\b",
        "/admin%00",
        "/a?b=/../admin",
        *("/a%3Ab", "/a%3ab", "/adm%C3%AFn", "/admin%20x", "/a%252fb", "/admin%3Fx", "/books/a%20b/pages"),
    ),
)


def make_case(dice: random.Random, world: World) -> Case:
    """Up to four filters and requests near to their conditions."""
    paths = dice.choice((0, 0, 0, *range(len(PATHS))))
    rbacs = [_rbac(dice, world.ports[paths]) for _ in range(dice.choice((1, 1, 1, 2, 3)))]
    return Case(rbacs, [make_ask(dice) for _ in range(ASKS)], paths)


def _rbac(dice: random.Random, port: int) -> Any:
    policies = {
        f"{dice.choice('abcns')}[{number}] {dice.choice('xy')}": {
            "permissions": [_permission(dice, port, 0) for _ in range(dice.choice((1, 1, 2)))],
            "principals": [_principal(dice, 0) for _ in range(dice.choice((1, 1, 2)))],
        }
        for number in range(dice.choice((0, 1, 1, 2, 3)))
    }
    action = dice.choice(("ALLOW", "ALLOW", "DENY", "DENY", "LOG"))
    made: Values = {"rules": {"action": action, "policies": policies}}
    return pb.from_dict(pb.RBAC, made)


def _text(dice: random.Random, texts: tuple[str, ...]) -> Values:
    kind = dice.choice(("exact", "exact", "prefix", "suffix", "contains", "safe_regex"))
    text = dice.choice(texts)
    if kind == "safe_regex":
        return {"safe_regex": {"regex": dice.choice(REGEXES)}}
    if kind == "exact":
        return {"exact": text, "ignore_case": dice.random() < 0.2}
    cut = max(1, dice.randint(1, len(text) or 1))
    part = {"prefix": text[:cut], "suffix": text[-cut:], "contains": text[1:cut]}[kind] or "a"
    return {kind: part, "ignore_case": dice.random() < 0.2}


def _header(dice: random.Random) -> Values:
    kind = dice.random()
    if kind < 0.2:
        return {"name": ":method", "string_match": {"exact": dice.choice(METHODS)}}
    if kind < 0.4:
        return {"name": ":authority", "string_match": _text(dice, HOSTS), "invert_match": dice.random() < 0.2}
    if kind < 0.5:
        return {"name": ":path", "string_match": _text(dice, PATH_TEXTS)}
    made: Values = {"name": dice.choice(HEADERS)}
    match dice.randint(0, 4):
        case 0:
            made["present_match"] = dice.random() < 0.7
        case 1:
            made["range_match"] = {"start": dice.choice((-10, 0, 5)), "end": dice.choice((5, 6, 100))}
        case _:
            made["string_match"] = _text(dice, TEXTS)
    made["invert_match"] = dice.random() < 0.25
    made["treat_missing_header_as_empty"] = dice.random() < 0.25
    return made


def _block(dice: random.Random) -> Values:
    address, length = dice.choice(BLOCKS)
    return {"address_prefix": address, "prefix_len": length}


def _permission(dice: random.Random, port: int, depth: int) -> Values:
    kind = dice.randint(0, 10 if depth < 3 else 7)
    match kind:
        case 0:
            return {"any": True}
        case 1:
            return {"header": _header(dice)}
        case 2 | 3:
            return {"url_path": {"path": _text(dice, PATH_TEXTS)}}
        case 4:
            return {"destination_ip": _block(dice)}
        case 5:
            low = port + dice.choice((-5, 0, 0, 1))
            return dice.choice(
                ({"destination_port": low}, {"destination_port_range": {"start": low, "end": low + 2}})
            )
        case 6:
            return {"requested_server_name": _text(dice, ("server.example", "other.example", ""))}
        case 7:
            config = pb.message("envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig")
            packed = pb.pack(config(path_template=dice.choice(TEMPLATES)))
            return {"uri_template": {"name": "t", "typed_config": pb.to_dict(packed)}}
        case 8:
            return {"not_rule": _permission(dice, port, depth + 1)}
    several = [_permission(dice, port, depth + 1) for _ in range(dice.randint(1, 3))]
    return {dice.choice(("and_rules", "or_rules")): {"rules": several}}


def _principal(dice: random.Random, depth: int) -> Values:
    match dice.randint(0, 9 if depth < 3 else 6):
        case 0:
            return {"any": True}
        case 1 | 2 | 3:
            known = tuple(uri for uri in IDENTITIES if uri) + tuple(
                n for names in DNS.values() for n in names
            )
            if dice.random() < 0.15:
                return {"authenticated": {}}
            return {"authenticated": {"principal_name": _text(dice, (*known, *known, ""))}}
        case 4:
            return {dice.choice(("source_ip", "direct_remote_ip", "remote_ip")): _block(dice)}
        case 5:
            return {"header": _header(dice)}
        case 6:
            return {"url_path": {"path": _text(dice, PATH_TEXTS)}}
        case 7:
            return {"not_id": _principal(dice, depth + 1)}
    several = [_principal(dice, depth + 1) for _ in range(dice.randint(1, 3))]
    return {dice.choice(("and_ids", "or_ids")): {"ids": several}}


def make_ask(dice: random.Random) -> Ask:
    """A request of anybody."""
    headers = [(dice.choice(HEADERS[:4]), dice.choice(TEXTS)) for _ in range(dice.choice((0, 1, 2, 3)))]
    if dice.random() < 0.3:
        headers.append(("x-forwarded-for", dice.choice(FORWARDED)))
    if dice.random() < 0.15:
        headers.append(("x-forwarded-client-cert", "By=spiffe://x/ns/a/sa/b;URI=" + dice.choice(IDENTITIES)))
    path = dice.choice(PATH_TEXTS)
    if dice.random() < 0.35:
        path = dice.choice(TRICKS)
    if dice.random() < 0.15:
        path += "?" + dice.choice(("a=1", "x=/admin", ""))
    call = Call(dice.choice(METHODS), dice.choice(HOSTS), path, tuple(headers))
    identity = dice.choice(IDENTITIES)
    return Ask(
        call,
        From(
            identity,
            dice.choice(SOURCES),
            dice.choice(DESTINATIONS),
            dice.choice(NAMES) if identity else NAMES[0],
        ),
    )
