"""A module as a program that renews certificates after another share of their term: argv is share, module, ….

So renewals come often, and a certificate's end is far all the same: on a slow machine, too.
"""

import runpy
import sys

from meshlib.identity import renewal

if __name__ == "__main__":
    renewal.RATIO = float(sys.argv[1])
    renewal.SPREAD = min(renewal.SPREAD, renewal.RATIO / 10)
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
