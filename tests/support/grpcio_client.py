"""A gRPC client of Python whose routes come from the control service: argv[1] is the target.

Each line of input, a JSON object {calls, metadata, deadline, method, fresh}, is answered by a line
{answers: {text: count}, errors: {"CODE details": count}}; `fresh` is with new connections. It runs as a
process of its own, because gRPC reads its xDS bootstrap once a process.
"""

import json
import sys
from collections import Counter

import grpc
import grpc.experimental


def opened() -> grpc.Channel:
    plain = grpc.experimental.insecure_channel_credentials()
    # As the configuration says: mutual TLS, or plain text.
    secured = grpc.xds_channel_credentials(plain)
    options = (("grpc.use_local_subchannel_pool", 1),)
    return grpc.secure_channel(sys.argv[1], secured, options)


def main() -> None:
    channel = opened()
    for line in sys.stdin:
        asked = json.loads(line)
        if asked.get("fresh"):
            channel.close()
            channel = opened()
        method = asked.get("method", "Hello")
        call = channel.unary_unary(f"/greeter.Greeter/{method}", str.encode, bytes.decode)
        answers: Counter[str] = Counter()
        errors: Counter[str] = Counter()
        for _ in range(asked.get("calls", 1)):
            try:
                answers[
                    call(
                        "hello",
                        metadata=tuple(asked.get("metadata", {}).items()),
                        timeout=asked.get("deadline", 60),
                    )
                ] += 1
            except grpc.RpcError as error:
                errors[f"{error.code().name} {error.details()}"] += 1
        print(json.dumps({"answers": answers, "errors": errors}), flush=True)
    channel.close()


if __name__ == "__main__":
    main()
