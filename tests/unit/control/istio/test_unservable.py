"""What Envoy or this library could not take is refused with its document, not with all that is served."""

import pytest

from meshlib.control.sources.text import documents_in

TO = "route: [{destination: {host: r}}]"


def problems(rule: str) -> list[tuple[str, str]]:
    text = (
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v}\n"
        f"spec: {{hosts: [h.example], http: [{{{rule}}}]}}\n"
    )
    read = documents_in(text, "mesh.yaml")
    return [(p.field, p.message) for p in read.problems if p.severity.name == "ERROR"]


@pytest.mark.parametrize("value", ["50%", "%REQ(%", "%REQ(a%b", "a % b", "%%%", "%req%"])
def test_a_percent_sign_that_stands_for_nothing(value: str) -> None:
    found = problems(f"headers: {{request: {{set: {{x: '{value}'}}}}}}, {TO}")
    assert found == [("spec.http[0].headers.request.set.x", "a % that stands for nothing")]


@pytest.mark.parametrize(
    "value", ["", "50%%", "%PROTOCOL%", "<%REQ(x?:path):9%>", "%START_TIME(%s)%", "%%%PROTOCOL%%%"]
)
def test_a_template(value: str) -> None:
    assert problems(f"headers: {{response: {{add: {{x: '{value}'}}}}}}, {TO}") == []


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        (f'rewrite: {{uri: "/a\\nb"}}, {TO}', "rewrite.uri"),
        (f'rewrite: {{authority: "a\\rb"}}, {TO}', "rewrite.authority"),
        (
            f'rewrite: {{uriRegexRewrite: {{match: a, rewrite: "\\n"}}}}, {TO}',
            "rewrite.uriRegexRewrite.rewrite",
        ),
        ('redirect: {uri: "/a\\0b"}', "redirect.uri"),
        ('redirect: {authority: "a\\nb"}', "redirect.authority"),
        ('redirect: {prefixRewrite: "a\\nb"}', "redirect.prefixRewrite"),
    ],
)
def test_line_breaks(rule: str, field: str) -> None:
    assert problems(rule) == [(f"spec.http[0].{field}", "a line break")]


@pytest.mark.parametrize(
    ("rule", "field", "message"),
    [
        (
            f"rewrite: {{uriRegexRewrite: {{match: a, rewrite: '\\1'}}}}, {TO}",
            "rewrite.uriRegexRewrite.rewrite",
            "no group of the pattern",
        ),
        (
            f"rewrite: {{uriRegexRewrite: {{match: (a), rewrite: '\\x'}}}}, {TO}",
            "rewrite.uriRegexRewrite.rewrite",
            "no group of the pattern",
        ),
        (f"retries: {{attempts: 1001}}, {TO}", "retries.attempts", "too many"),
        (f"timeout: 90000000h, {TO}", "timeout", "too long a duration"),
    ],
)
def test_what_nobody_can_do(rule: str, field: str, message: str) -> None:
    assert problems(rule) == [(f"spec.http[0].{field}", message)]


def test_a_star_means_present_for_without_headers_and_is_no_pattern_elsewhere() -> None:
    assert problems(f"match: [{{withoutHeaders: {{x: {{regex: '*'}}}}}}], {TO}") == []
    for place in ("uri", "headers.x", "queryParams.x"):
        outer, _, inner = place.partition(".")
        given = f"{{{inner}: {{regex: '*'}}}}" if inner else "{regex: '*'}"
        ((field, message),) = problems(f"match: [{{{outer}: {given}}}], {TO}")
        assert (field, message[:18]) == (f"spec.http[0].match[0].{place}.regex", "not an RE2 pattern")
