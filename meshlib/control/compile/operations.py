"""What a rule is about, as clauses: hosts, methods, paths, ports, and conditions on the connection."""

from collections.abc import Iterator
from typing import Any

from meshlib.control.compile import matchers
from meshlib.control.compile.clauses import PERMISSION, Clause, Filterer, Needs
from meshlib.control.istio.authorizationpolicy import Operation, Rule
from meshlib.xds import pb


def operations(rule: Rule, who: Filterer) -> list[list[Clause]]:
    """One list of clauses for each `to`; the request matches one list whole."""
    when = [
        clause
        for condition in rule.when
        if (clause := _permission_condition(condition.key, condition.values, condition.not_values))
    ]
    listed = [to.operation for to in rule.to]
    return [[*_operation(one, who), *when] for one in listed] or [when]


def _operation(one: Operation | None, who: Filterer) -> Iterator[Clause]:
    if one is None:
        return
    http = Needs.REQUEST
    hosts = PERMISSION.each(lambda v: {"header": matchers.header(":authority", v, ignore_case=True)})
    methods = PERMISSION.each(lambda v: {"header": matchers.header(":method", v)})
    paths = PERMISSION.each(lambda v: _path(v, who))
    yield Clause("hosts", one.hosts, one.not_hosts, hosts, http)
    yield Clause("methods", one.methods, one.not_methods, methods, http)
    yield Clause("paths", one.paths, one.not_paths, paths, http)
    yield Clause("ports", one.ports, one.not_ports, PERMISSION.each(_port))


def _port(value: str) -> dict[str, Any]:
    return {"destination_port": int(value)}


_SEGMENT = r"[-a-zA-Z0-9._~%!$&'()+,;:@=*]"
"""What the URI templates of Envoy take for one character of a segment."""


def _path(value: str, who: Filterer) -> dict[str, Any]:
    path = pb.message("envoy.type.matcher.v3.PathMatcher")
    if "{*}" not in value and "{**}" not in value:
        return {"url_path": path(path=matchers.text(value))}
    if who is Filterer.GRPC:
        parts = (_segment(part) for part in value.split("/"))
        return {"url_path": path(path=matchers.pattern("/".join(parts)))}
    template = value.replace("{*}", "*").replace("{**}", "**")
    config = pb.message("envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig")
    extension = pb.message("envoy.config.core.v3.TypedExtensionConfig")(
        name="uri-template", typed_config=pb.pack(config(path_template=template))
    )
    return {"uri_template": extension}


def _segment(part: str) -> str:
    if part == "{*}":
        return f"{_SEGMENT}+"
    return f"(?:{_SEGMENT}|/)*" if part == "{**}" else matchers.literal(part)


def _permission_condition(key: str, values: tuple[str, ...], but: tuple[str, ...]) -> Clause | None:
    envoy = Needs.ENVOY
    if key == "destination.ip":
        match = PERMISSION.each(lambda v: {"destination_ip": matchers.network(v)})
        return Clause(key, values, but, match)
    if key == "destination.port":
        return Clause(key, values, but, PERMISSION.each(_port))
    if key == "connection.sni":
        match = PERMISSION.each(lambda v: {"requested_server_name": matchers.text(v)})
        return Clause(key, values, but, match, envoy)
    if key.startswith("experimental."):
        name, _, inner = key.removeprefix("experimental.").removesuffix("]").partition("[")
        return Clause(key, values, but, lambda given: _of_filter(name, inner, given), envoy)
    return None


def _of_filter(name: str, key: str, values: tuple[str, ...]) -> Any:
    found = []
    for value in values:
        in_list = value.startswith("[") and value.endswith("]")
        one = matchers.value_of(matchers.text(value.strip("[]") if in_list else value))
        found.append(matchers.one_in(one) if in_list else one)
    matcher = matchers.metadata(name, (key,), matchers.any_of(found))
    return pb.message(PERMISSION.name)(metadata=matcher)
