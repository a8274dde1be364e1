"""gRPC channels of Python: each line of input is a JSON list of targets, that are open from then on."""

import json
import sys

import grpc


def main() -> None:
    channels: list[grpc.Channel] = []
    for line in sys.stdin:
        opened = [grpc.insecure_channel(f"xds:///{target}") for target in json.loads(line)]
        for channel in opened:
            # What `subscribe` does, without its thread, for which `close` would wait.
            channel._channel.check_connectivity_state(True)
        for channel in channels:
            channel.close()
        channels = opened
        print("open", flush=True)
    for channel in channels:
        channel.close()


if __name__ == "__main__":
    main()
