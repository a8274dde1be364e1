"""A gRPC client of Python whose routes come from the control service.

argv[1] is the target, if lines name none. Each line of input, a JSON object as `grpc_asking` reads it, with
{target, fresh} besides, is answered by a line as it tells it; `fresh` is with new connections. It runs as a
process of its own, because gRPC reads its xDS bootstrap once a process.
"""

import json
import sys
from pathlib import Path

import grpc
import grpc.experimental

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.grpc_asking import ask


def opened(target: str) -> grpc.Channel:
    plain = grpc.experimental.insecure_channel_credentials()
    # As the configuration says: mutual TLS, or plain text.
    secured = grpc.xds_channel_credentials(plain)
    options = (("grpc.use_local_subchannel_pool", 1),)
    return grpc.secure_channel(target, secured, options)


def main() -> None:
    channels: dict[str, grpc.Channel] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        target = asked.get("target") or sys.argv[1]
        if asked.get("fresh") and target in channels:
            channels.pop(target).close()
        if target not in channels:
            channels[target] = opened(target)
        print(json.dumps(ask(channels[target], asked)), flush=True)
    for channel in channels.values():
        channel.close()


if __name__ == "__main__":
    main()
