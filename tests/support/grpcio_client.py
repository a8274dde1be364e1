"""A gRPC client of Python whose routes come from the control service: argv[1] is the target.

Each line of input, a JSON object {calls, metadata, deadline}, is answered by a line
{answers: {text: count}, errors: {"CODE details": count}}. It runs as a process of its own,
because gRPC reads its xDS bootstrap once a process.
"""

import json
import sys
from collections import Counter

import grpc


def main() -> None:
    channel = grpc.insecure_channel(sys.argv[1])
    hello = channel.unary_unary("/greeter.Greeter/Hello", str.encode, bytes.decode)
    for line in sys.stdin:
        asked = json.loads(line)
        answers: Counter[str] = Counter()
        errors: Counter[str] = Counter()
        for _ in range(asked.get("calls", 1)):
            try:
                answers[
                    hello(
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
