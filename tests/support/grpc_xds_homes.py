"""Programs with gRPC's own xDS: argv is what to do, target, method. What comes of it is printed."""

import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

import meshlib_grpc

VARIABLE = "GRPC_XDS_BOOTSTRAP"
METHOD = "/greeter.Greeter/Hello"


def hello(channel: grpc.Channel) -> str:
    """The last word of the answer but for the certificate: who is answered, or by whom."""
    answer = channel.unary_unary(sys.argv[3])(b"", timeout=30, wait_for_ready=True).decode()
    return str(answer.split()[:2][-1])


def opened() -> grpc.Channel:
    return meshlib_grpc.xds_channel(sys.argv[2], options=(("grpc.use_local_subchannel_pool", 1),))


def exits() -> list[str]:
    """It ends without closing anything."""
    kept = opened()
    globals()["kept"] = kept
    return [hello(kept), os.environ[VARIABLE]]


def killed() -> list[str]:
    """It lives until it is killed."""
    kept = opened()
    told = [hello(kept), os.environ[VARIABLE]]
    print(json.dumps(told), flush=True)
    threading.Event().wait()
    return told


def forks(before: bool = True) -> list[str]:
    """Its child calls, too, by a bootstrap of its own; `before`: the parent has called before."""
    told = []
    if before:
        channel = opened()
        told.append(hello(channel))
    reads, writes = os.pipe()
    if not os.fork():
        own = opened()
        os.write(writes, json.dumps([hello(own), os.environ[VARIABLE]]).encode())
        shutil.rmtree(Path(os.environ[VARIABLE]).parent)  # as it ends without ceremony
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as said:
        who, bootstrap = json.loads(said.read())
    assert os.wait()[1] == 0
    if not before:
        channel = opened()
    return [*told, who, hello(channel), str(bootstrap != os.environ[VARIABLE])]


def forks_first() -> list[str]:
    """The same before any call."""
    return forks(before=False)


def starts() -> list[str]:
    """A program that it starts inherits the environment."""
    channel = opened()
    child = subprocess.run(
        [sys.executable, __file__, "exits", *sys.argv[2:]],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    who, bootstrap = json.loads(child.stdout)
    return [who, hello(channel), str(bootstrap != os.environ[VARIABLE])]


def crowds() -> list[str]:
    """Many threads begin at once."""
    with ThreadPoolExecutor(16) as pool:
        channels = list(pool.map(lambda _: opened(), range(16)))
        found = set(pool.map(hello, channels))
    folders = list(Path(os.environ[VARIABLE]).parent.parent.glob("meshlib-xds-*"))
    keepers = [one for one in threading.enumerate() if one.name == "meshlib-grpc-xds"]
    return [*found, str(len(keepers)), str(len(folders))]


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()), flush=True)
