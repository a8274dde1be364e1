"""Runs a Python module in this process for as long as the parent lives.

`python -m meshlib.cli.tether MODULE ARGUMENTS…`

The parent keeps the other end of our standard input and never writes. However the parent ends,
`kill -9` included, that pipe closes, and this process is told to stop, then made to.
"""

import os
import runpy
import signal
import sys
import threading
import time

GRACE = 3.0
"""Seconds to stop by itself once the parent is gone."""


def _follow() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


def main() -> None:
    """Ties this process to its parent, then becomes the module."""
    module, *arguments = sys.argv[1:]
    threading.Thread(target=_follow, name="meshlib tether", daemon=True).start()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
