"""What a workload does with the SPIFFE Workload API: the `spiffe` package, in a process of its own.

    python -m support.spiffe_client SOCKET [once|watch]

Prints a line for each answer: the identities, and the number of certificates that are trusted; or why there
is none. Each further answer is awaited; it ends with its standard input.
"""

import sys
import threading

from spiffe import WorkloadApiClient
from spiffe.workloadapi.x509_context import X509Context


def told(context: X509Context) -> None:
    """A line for an answer, which is whole: the chain leads to the bundle."""
    own = context.default_svid
    domain = own.spiffe_id.trust_domain
    bundle = context.x509_bundle_set.get_bundle_for_trust_domain(domain)
    assert bundle is not None
    count = len(bundle.x509_authorities)
    names = ",".join(str(one.spiffe_id) for one in context.x509_svids)
    print(f"{names} {own.leaf.serial_number:x} {count}", flush=True)


def main(socket: str, how: str) -> None:
    with WorkloadApiClient(f"unix://{socket}") as client:
        if how == "once":
            try:
                assert client.fetch_x509_svid(timeout=30).spiffe_id
                told(client.fetch_x509_context(timeout=30))
                assert client.fetch_x509_bundles(timeout=30).bundles
            except Exception as error:
                print(f"no: {error}", flush=True)
            return
        over = threading.Event()
        client.stream_x509_contexts(
            told, lambda error: (print(f"ended: {error}", flush=True), over.set()), retry_connect=False
        )
        threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
        over.wait()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
