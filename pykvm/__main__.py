"""python -m pykvm: the command line."""

import sys

from pykvm.cli import program

if __name__ == "__main__":
    sys.exit(program())
