"""`python -m robustdd_bench` is the command `robustdd`."""

import sys

from robustdd_bench.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
