"""`meshlib`, renewing certificates after another share of their term: argv[1].

So renewals come often, and a certificate's end is far all the same: on a slow machine, too.
"""

import sys

from meshlib.cli import main
from meshlib.identity import renewal

if __name__ == "__main__":
    renewal.RATIO = float(sys.argv.pop(1))
    main()
