"""What is checked of authorizers, keys and the values of rules."""

import pytest

from meshlib.control.sources.text import documents_in

PROVIDER = """
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
metadata: {name: mesh}
extensionProviders:
- name: one
  %s
"""
RULE = """
apiVersion: security.istio.io/v1
kind: %s
metadata: {name: one}
spec: {%s}
"""


def found(text: str) -> list[str]:
    return [
        f"{problem.severity.value} {problem.message}" for problem in documents_in(text, "a.yaml").problems
    ]


@pytest.mark.parametrize(
    "text",
    [
        "prometheus: {}",
        "envoyExtAuthzGrpc: {service: a.b, port: 9000, statusOnError: '503'}",
        "envoyExtAuthzHttp: {service: ns/a.b, port: 80, pathPrefix: /x, headersToUpstreamOnAllow: [x-*]}",
    ],
)
def test_authorizers(text: str) -> None:
    assert found(PROVIDER % text) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("envoyExtAuthzGrpc: {port: 9000}", "not a service"),
        ("envoyExtAuthzGrpc: {service: a/b/c, port: 9000}", "not a service"),
        ("envoyExtAuthzGrpc: {service: a}", "not a port"),
        ("envoyExtAuthzGrpc: {service: a, port: 70000}", "not a port"),
        ("envoyExtAuthzGrpc: {service: a, port: 1, statusOnError: never}", "not a status"),
        ("envoyExtAuthzGrpc: {service: a, port: 1, statusOnError: '418'}", "not a status"),
        ("envoyExtAuthzGrpc: {service: a, port: 1, timeout: 0s}", "too short a duration"),
        ("envoyExtAuthzGrpc: {service: a, port: 1, pathPrefix: /x}", "not an authorizer"),
        ("envoyExtAuthzHttp: {service: a, port: '1'}", "not an authorizer"),
        ("envoyExtAuthzHttp: {service: a, port: 1, pathPrefix: x}", "not the beginning of a path"),
        (
            "envoyExtAuthzHttp: {service: a, port: 1, includeHeadersInCheck: ['*']}",
            "not the name of a header",
        ),
        (
            "envoyExtAuthzHttp: {service: a, port: 1, includeRequestBodyInCheck: {packAsBytes: true}}",
            "no size of the body",
        ),
    ],
)
def test_no_authorizers(text: str, message: str) -> None:
    (problem,) = found(PROVIDER % text)
    assert problem.startswith("error ")
    assert message in problem


def test_keys_that_nobody_can_use_are_a_warning() -> None:
    (problem,) = found(RULE % ("RequestAuthentication", "jwtRules: [{issuer: a, jwks: '{\"keys\":[]}'}]"))
    assert problem.startswith("warning ")
    assert "every token is refused" in problem


def test_values_are_bounded() -> None:
    long = "a" * 10_001
    (in_source,) = found(
        RULE % ("AuthorizationPolicy", f"rules: [{{from: [{{source: {{namespaces: [{long}]}}}}]}}]")
    )
    when = f"rules: [{{when: [{{key: source.namespace, notValues: [{long}]}}]}}]"
    (in_condition,) = found(RULE % ("AuthorizationPolicy", when))
    for problem in (in_source, in_condition):
        assert problem.startswith("error ")
        assert "too long a value" in problem


def test_a_provider_that_is_never_asked_for_its_name_is_a_warning() -> None:
    text = PROVIDER.replace("one", "One_1") % "envoyExtAuthzGrpc: {service: a, port: 1}"
    assert found(text) == ["warning what its rules match is denied for this name"]
    assert found(PROVIDER.replace("one", "One_1") % "prometheus: {}") == []


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("jwksUri: 'https://x/y'", ""),
        ("issuer: a", ""),
        ("jwks: '{}'", "no issuer"),
        ("audiences: [a]", "no issuer"),
    ],
)
def test_tokens_are_of_an_issuer_or_of_somebody_whose_keys_are_known(rule: str, message: str) -> None:
    problems = found(RULE % ("RequestAuthentication", f"jwtRules: [{{{rule}}}]"))
    assert [problem for problem in problems if "issuer" in problem] == (
        [f"error {message}"] if message else []
    )


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("", []),
        ("action: ALLOW,", []),
        ("action: DENY,", []),
        ("action: AUDIT,", ["error no dry run of this action"]),
        ("action: CUSTOM, provider: {name: a},", ["error no dry run of this action"]),
    ],
)
def test_what_can_be_tried(action: str, said: list[str]) -> None:
    text = RULE.replace("name: one", "name: one, annotations: {istio.io/dry-run: 'true'}")
    assert found(text % ("AuthorizationPolicy", f"{action} rules: [{{}}]")) == said
