"""python -m pykvm: the command line."""

import sys

from pykvm.cli import main

if __name__ == "__main__":
    sys.exit(main())
