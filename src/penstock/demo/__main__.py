"""``python -m penstock.demo``: the same as ``penstock demo``."""

import sys

from penstock.ops.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["demo"]
    main()
