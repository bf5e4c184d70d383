"""Run the command as `python -m mlxdist.cli`, without an installed script."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
