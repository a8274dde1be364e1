"""Messages that several threads ask for first, at the same moment: all get the same classes."""

import subprocess
import sys

SCRIPT = """
import sys, threading
sys.setswitchinterval(1e-6)
from meshlib.xds import pb
barrier, found = threading.Barrier(8), []

def ask():
    barrier.wait()
    found.append((pb.pool(), pb.message("envoy.config.core.v3.Node"), pb.DeltaDiscoveryRequest))

threads = [threading.Thread(target=ask) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(*(len({id(one) for one in ones}) for ones in zip(*found)))
_, node, request = found[0]
for _, other, asked in found:
    asked().node.CopyFrom(other(id="a"))
print("alike", len(found))
"""


def test_threads_that_ask_first_get_the_same_classes() -> None:
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, "1 1 1\nalike 8\n"), done.stderr
