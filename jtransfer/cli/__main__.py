"""`python -m jtransfer.cli` is `jtransfer`."""

import sys

from jtransfer.cli import main

if __name__ == "__main__":
    sys.exit(main())
