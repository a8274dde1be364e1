"""Every retry condition against every outcome: Envoy and our whole path make as many tries, end alike."""

from pathlib import Path

from support.oracle_retries import REFUSED, Case, compare

CONDITIONS = (
    *("5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "envoy-ratelimited"),
    *("retriable-4xx", "refused-stream", "retriable-status-codes", "retriable-headers"),
    "http3-post-connect-failure",
    *("cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"),
)
OUTCOMES = (
    *("200", "404", "409", "418", "429", "500", "501", "502", "503", "504", "599"),
    *("429+x-envoy-ratelimited=true", "503+x-envoy-ratelimited=true", "418+x-envoy-ratelimited=true"),
    *("200+x-again=1", "404+x-again=", "503+x-again=1"),
    *(f"200+grpc-status={number}" for number in (0, 1, 2, 4, 8, 13, 14)),
    *("503+grpc-status=14", "200+grpc-status=x", "200+grpc-status=014"),
    *("reset", "close", "cut", "never", REFUSED),
)


def every_condition() -> list[Case]:
    made = []
    for condition in CONDITIONS:
        for outcome in OUTCOMES:
            policy = {
                "retry_on": condition,
                "num_retries": 2,
                "retriable_status_codes": [418],
                "retriable_headers": [{"name": "X-Again", "present_match": True}],
            }
            if outcome == "never":
                policy["per_try_timeout"] = "0.06s"
            made.append(Case(outcome, policy))
    return made


async def test_envoy_and_we_try_alike(tmp_path: Path) -> None:
    cases = every_condition()
    found = await compare(cases, tmp_path)
    differences = [f"{case}: Envoy {theirs}, ours {ours}" for case, theirs, ours in found if theirs != ours]
    assert not differences, f"{len(differences)} of {len(cases)} differ\n" + "\n".join(differences[:60])
