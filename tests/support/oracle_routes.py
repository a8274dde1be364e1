"""Random route configurations, and requests that come close to them: the odd and the hostile included.

Requests are made from a rule's own conditions, met or nearly met, so that most of them decide
something. Everything follows from the random.Random that is passed.
"""

import random
from typing import Any

from support.oracle import Case
from support.oracle_http import Call

from meshlib.xds import pb

Values = dict[str, Any]

DOMAINS = (
    "reviews",
    "reviews:9080",
    "reviews.default",
    "Reviews.Default.svc",
    "a.example.com",
    "[::1]:80",
    "10.0.0.1",
)
WILDCARDS = ("*.example.com", "*.a.example.com", "*com", "reviews.*", "rev*", "*", "*:9080", "*.default:80")
PATHS = (
    "/",
    "/a",
    "/A",
    "/a/",
    "/a/b",
    "/api/v1",
    "/api/v1/products",
    "/api",
    "//",
    "/a//b",
    "/a%2fb",
    "/a;x=1",
)
PATTERNS = (
    ".*",
    "/a.*",
    "/(a|api)/[^/]+",
    "/api/v[0-9]+(/.*)?",
    "(?i)/A/.*",
    "/a",
    "",
    "/[a-z]*",
    r"/a\?.*",
    r"/a%2[fF]b",
    ".+/b$",
)
HEADERS = (
    "x-a",
    "x-b",
    "end-user",
    "user-agent",
    "cookie",
    "X-Mixed-Case",
    "accept",
    "content-type",
    "authorization",
    "accept-encoding",
    "cache-control",
    "via",
    "x-forwarded-host",
)
TEXTS = ("1", "a", "A", "jason", "Jason Smith", "a,b", "v1.2", "0", "-5", "42", "a b", "x=1; y=2")
TEXT_PATTERNS = (".*", "a.*", "[0-9]+", "(?i)JASON.*", "a,b", ".*Chrome.*", "", "^$", "a|b", ".+")
QUERY = ("q", "user", "a.b", "%61", "")
CLUSTERS = ("outbound|9080|v1|reviews", "outbound|9080|v2|reviews", "outbound|80||ratings", "c")
REWRITES = ("/", "/new", "/new/", "", "/a%20b", "new", "/n?x=1")
SUBSTITUTIONS = (r"\1", r"/x\1", r"\0\0", "/fixed", "", r"\\", r"/y\0?z=1")
HOSTS = ("other", "Other.Example.com:8080", "x", "")


def make_case(dice: random.Random, requests: int = 6) -> Case:
    """A route configuration with 1 to 3 virtual hosts, and requests to it."""
    domains = dice.sample(DOMAINS, dice.randint(1, 4)) + dice.sample(WILDCARDS, dice.randint(0, 3))
    dice.shuffle(domains)
    hosts: list[Values] = []
    count = min(len(domains), dice.randint(1, 3))
    for number in range(count):
        routes = [_route(dice, f"r{number}-{index}") for index in range(dice.randint(1, 6))]
        host = {"name": f"v{number}", "domains": domains[number::count], "routes": routes}
        hosts.append(host | _edits(dice, 0.15))
    values = {"name": "oracle", "virtual_hosts": hosts} | _edits(dice, 0.15)
    if dice.random() < 0.2:
        values["ignore_port_in_host_matching"] = True
    if dice.random() < 0.2:
        values["most_specific_header_mutations_wins"] = True
    config = pb.from_dict(pb.RouteConfiguration, values)
    return Case(config, [make_call(dice, values) for _ in range(requests)])


def _route(dice: random.Random, name: str) -> Values:
    match = _match(dice)
    kind = dice.random()
    route: Values = {"name": name, "match": match} | _edits(dice, 0.25)
    if kind < 0.75:
        route["route"] = _forward(dice)
    elif kind < 0.9:
        route["redirect"] = _redirect(dice)
    else:
        body = dice.choice(("", "hello", "{}"))
        route["direct_response"] = {"status": dice.choice((200, 201, 204, 302, 403, 503, 599))}
        if route["direct_response"]["status"] != 204 and body:
            route["direct_response"]["body"] = {"inline_string": body}
    return route


def _match(dice: random.Random) -> Values:
    kind = dice.random()
    match: Values
    if kind < 0.4:
        match = {"prefix": dice.choice((*PATHS, ""))}
    elif kind < 0.65:
        match = {"path": dice.choice(PATHS)}
    elif kind < 0.85:
        match = {"safe_regex": {"regex": dice.choice(PATTERNS) or "/"}}
    else:
        match = {"path_separated_prefix": dice.choice(("/a", "/api", "/api/v1", "/A/b", "ab"))}
    if dice.random() < 0.2:
        match["case_sensitive"] = dice.random() < 0.3
    if dice.random() < 0.4:
        match["headers"] = [_header_match(dice) for _ in range(dice.randint(1, 3))]
    if dice.random() < 0.25:
        match["query_parameters"] = [_query_match(dice) for _ in range(dice.randint(1, 2))]
    if dice.random() < 0.1:
        match["runtime_fraction"] = {"default_value": {"numerator": dice.choice((0, 100))}}
    if dice.random() < 0.03:
        match["grpc"] = {}
    return match


def _text_match(dice: random.Random) -> Values:
    kind = dice.choice(("exact", "prefix", "suffix", "contains", "safe_regex"))
    if kind == "safe_regex":
        return {"safe_regex": {"regex": dice.choice(TEXT_PATTERNS) or "x?"}}
    found: Values = {kind: dice.choice(TEXTS)}
    if kind == "exact" and dice.random() < 0.1:
        found["exact"] = ""
    if dice.random() < 0.2:
        found["ignore_case"] = True
    return found


def _header_match(dice: random.Random) -> Values:
    pseudo = {
        ":method": lambda: {"exact": dice.choice(("GET", "POST", "get"))},
        ":authority": lambda: {dice.choice(("exact", "prefix")): dice.choice(DOMAINS)},
        ":scheme": lambda: {"exact": dice.choice(("http", "https"))},
        ":path": lambda: {"prefix": "/a"},
        "host": lambda: {"exact": dice.choice(DOMAINS)},
    }
    if dice.random() < 0.2:
        name = dice.choice(tuple(pseudo))
        match: Values = {"name": name, "string_match": pseudo[name]()}
    else:
        match = {"name": dice.choice(HEADERS)}
        kind = dice.random()
        if kind < 0.6:
            match["string_match"] = _text_match(dice)
        elif kind < 0.75:
            match["present_match"] = dice.random() < 0.7
        elif kind < 0.9:
            match["range_match"] = {"start": dice.choice((-10, 0, 1)), "end": dice.choice((1, 42, 43, 1000))}
    if dice.random() < 0.3:
        match["invert_match"] = True
    if dice.random() < 0.25:
        match["treat_missing_header_as_empty"] = True
    return match


def _query_match(dice: random.Random) -> Values:
    match: Values = {"name": dice.choice(QUERY[:-1])}
    kind = dice.random()
    if kind < 0.6:
        match["string_match"] = _text_match(dice)
    elif kind < 0.9:
        match["present_match"] = dice.random() < 0.8
    return match


def _forward(dice: random.Random) -> Values:
    made: Values = {}
    if dice.random() < 0.6:
        made["cluster"] = dice.choice(CLUSTERS)
    else:
        names = dice.sample(CLUSTERS, dice.randint(1, 3))
        chosen = dice.randrange(len(names))
        weighted = [
            {"name": name, "weight": 100 if number == chosen else 0} | _edits(dice, 0.4)
            for number, name in enumerate(names)
        ]
        for cluster in weighted:
            if dice.random() < 0.2 and (host := dice.choice(HOSTS)):
                cluster["host_rewrite_literal"] = host
        made["weighted_clusters"] = {"clusters": weighted}
    if dice.random() < 0.5:
        made["timeout"] = dice.choice(("0s", "2s", "0.25s", "30s", "1.0015s"))
    if dice.random() < 0.2:
        made["max_grpc_timeout"] = dice.choice(("0s", "1s", "10s"))
    if dice.random() < 0.3:
        made["retry_policy"] = {
            "retry_on": "5xx",
            "per_try_timeout": dice.choice(("0s", "1s", "2s", "3s", "20s")),
        }
    if dice.random() < 0.25 and (host := dice.choice(HOSTS)):
        made["host_rewrite_literal"] = host
    return made | _rewrite(dice)


def _rewrite(dice: random.Random) -> Values:
    kind = dice.random()
    if kind < 0.25:
        return {"prefix_rewrite": dice.choice(REWRITES)}
    if kind > 0.2 + 0.6:
        source, substitution = (
            dice.choice((*PATTERNS, "a*", "/", "([a-z]+)", "(a)|(p)")),
            dice.choice(SUBSTITUTIONS),
        )
        if r"\1" in substitution and "(" not in source.replace("(?", ""):
            source = f"({source})"
        return {"regex_rewrite": {"pattern": {"regex": source or "a"}, "substitution": substitution}}
    return {}


def _redirect(dice: random.Random) -> Values:
    made: Values = {
        "response_code": dice.choice(("MOVED_PERMANENTLY", "FOUND", "SEE_OTHER", "PERMANENT_REDIRECT"))
    }
    scheme = dice.random()
    if scheme < 0.2:
        made["https_redirect"] = True
    elif scheme < 0.4:
        made["scheme_redirect"] = dice.choice(("http", "https", "ftp"))
    if dice.random() < 0.4 and (host := dice.choice(HOSTS)):
        made["host_redirect"] = host
    if dice.random() < 0.3:
        made["port_redirect"] = dice.choice((80, 443, 8443))
    path = dice.random()
    if path < 0.3:
        made["path_redirect"] = dice.choice(("/new", "/new?x=1", "/", "new", "/a%2fb"))
    elif path < 0.7:
        made |= _rewrite(dice)
    if dice.random() < 0.3:
        made["strip_query"] = True
    return made


EDIT_NAMES = ("x-a", "x-b", "x-up", "x-new", "user-agent", "X-Mixed-Case", "accept")
EDIT_VALUES = (
    *("1", "two words", "", "50%%", "%RESPONSE_CODE%", "%ROUTE_NAME%", "%UPSTREAM_CLUSTER%", "%PROTOCOL%"),
    *("%REQ(x-a)%", "%REQ(x-absent)%", "%REQ(x-absent?end-user)%", "%REQ(user-agent):3%"),
    *("<%REQ(:path)%>", "%REQ(:authority)%-%REQ(:METHOD)%"),
)
ACTIONS = ("APPEND_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT", "OVERWRITE_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS")


def _edits(dice: random.Random, chance: float) -> Values:
    made: Values = {}
    for side in ("request", "response"):
        if dice.random() < chance:
            made[f"{side}_headers_to_add"] = [
                {
                    "header": {"key": dice.choice(EDIT_NAMES), "value": dice.choice(EDIT_VALUES)},
                    "append_action": dice.choice(ACTIONS),
                    "keep_empty_value": dice.random() < 0.2,
                }
                for _ in range(dice.randint(1, 4))
            ]
        if dice.random() < chance / 2:
            made[f"{side}_headers_to_remove"] = dice.sample(EDIT_NAMES, dice.randint(1, 2))
    return made


def make_call(dice: random.Random, values: Values) -> Call:
    """A request near to one of the configuration's rules."""
    host = dice.choice(values["virtual_hosts"])
    match = dice.choice(host["routes"])["match"]
    headers = [_near_header(dice, header) for header in match.get("headers", ()) if dice.random() < 0.8]
    headers += [
        (dice.choice(HEADERS), dice.choice((*TEXTS, "")))
        for _ in range(dice.randint(0, 3))
        if dice.random() < 0.6
    ]
    if dice.random() < 0.1:
        headers += [
            (
                "content-type",
                dice.choice(("application/grpc", "application/grpc+proto", "application/grpc-web")),
            )
        ]
        headers += [("grpc-timeout", dice.choice(("1S", "20S", "100m", "x", "1H", "")))]
    query = [_near_parameter(dice, parameter) for parameter in match.get("query_parameters", ())]
    if dice.random() < 0.3:
        query.append(
            dice.choice(("q=1", "user=jason", "a", "", "x=/a/b", "q=%31", "=", "q==1", "user=a&user=jason"))
        )
    path = _near_path(dice, match)
    if query or dice.random() < 0.05:
        path += "?" + "&".join(query)
    named = tuple((name, value) for name, value in headers if name.lower() != "host" and name[0] != ":")
    method = dice.choice(("GET", "GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"))
    return Call(method, _near_authority(dice, dice.choice(host["domains"])), path, named)


def _near_authority(dice: random.Random, domain: str) -> str:
    name = domain.replace("*", dice.choice(("x", "x.y", "", "a", "A")))
    change = dice.random()
    if change < 0.1:
        name = name.upper()
    elif change < 0.25 and ":" not in name:
        name += dice.choice((":80", ":9080", ":443"))
    elif change < 0.3:
        name = dice.choice((*DOMAINS, "unknown"))
    return name or "x"


def _near_path(dice: random.Random, match: Values) -> str:
    path = (
        match.get("prefix") or match.get("path") or match.get("path_separated_prefix") or dice.choice(PATHS)
    )
    change = dice.random()
    if change < 0.3:
        path += dice.choice(("/", "x", "/x", "/a/b", "%2f", "//", "/../a", "/v2/x", "."))
    elif change < 0.4:
        path = path.swapcase()
    elif change < 0.5:
        path = dice.choice(PATHS)
    return path if path.startswith("/") else "/" + path


def _near_header(dice: random.Random, match: Values) -> tuple[str, str]:
    text = match.get("string_match", {})
    value = (
        text.get("exact")
        or text.get("prefix")
        or text.get("suffix")
        or text.get("contains")
        or dice.choice(TEXTS)
    )
    change = dice.random()
    if change < 0.2:
        value = dice.choice(TEXTS)
    elif change < 0.3:
        value = value.swapcase()
    elif change < 0.4:
        value += "x"
    elif change < 0.5:
        value = ""
    name = match["name"]
    return (name.upper() if dice.random() < 0.2 else name), value


def _near_parameter(dice: random.Random, match: Values) -> str:
    text = match.get("string_match", {})
    value = text.get("exact") or text.get("prefix") or text.get("suffix") or dice.choice(TEXTS)
    value = value if dice.random() < 0.8 else dice.choice(TEXTS)
    name = match["name"] if dice.random() < 0.9 else dice.choice(QUERY)
    return f"{name}={value}".replace(" ", "%20") if dice.random() < 0.9 else name
