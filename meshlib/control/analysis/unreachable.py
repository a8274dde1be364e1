"""Rules of a VirtualService that no request can reach, because an earlier one takes them all."""

from collections.abc import Iterator

from meshlib.control.analysis.world import World, problem
from meshlib.control.istio.document import Document, FieldPath
from meshlib.control.istio.problem import Problem, Severity
from meshlib.control.istio.virtualservice import HTTPMatchRequest, VirtualService


def analyze(world: World) -> Iterator[Problem]:
    """IST0130 for a rule that is never used, IST0131 for one of its matches."""
    for service in world.virtual_services:
        yield from _http(service)


def _http(service: Document[VirtualService]) -> Iterator[Problem]:
    before: dict[str, int] = {}
    catch_all: int | None = None
    for index, rule in enumerate(service.spec.http):
        path: FieldPath = ("spec", "http", index)
        if catch_all is not None:
            message = f"never used: http[{catch_all}] before it takes every request"
            yield problem(Severity.WARNING, "IST0130", service, path, message)
            continue
        if not rule.match:
            catch_all = index
            continue
        keys = [_key(match) for match in rule.match]
        repeated = [position for position, key in enumerate(keys) if key in before]
        if len(repeated) == len(keys):
            message = f"never used: http[{before[keys[0]]}] before it has the same match"
            yield problem(Severity.WARNING, "IST0130", service, path, message)
        else:
            for position in repeated:
                message = f"without effect: http[{before[keys[position]]}] has the same match"
                yield problem(Severity.INFO, "IST0131", service, (*path, "match", position), message)
        for position, key in enumerate(keys):
            before.setdefault(key, index)
            if takes_all(rule.match[position]) and catch_all is None:
                catch_all = index


def _key(match: HTTPMatchRequest) -> str:
    """Two matches with the same key match the same requests; the names are for statistics only."""
    return match.model_dump_json(exclude={"name", "stat_prefix"})


def takes_all(match: HTTPMatchRequest) -> bool:
    """Whether every request matches: as Istio decides it, by the path alone, if nothing else is asked."""
    asked = match.model_dump(exclude_defaults=True, exclude={"name", "stat_prefix", "uri", "ignore_uri_case"})
    uri = match.uri
    everything = uri is None or uri.prefix == "/" or uri.regex in ("*", ".*")
    return everything and not asked
