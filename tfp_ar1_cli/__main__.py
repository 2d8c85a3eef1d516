"""`python -m tfp_ar1_cli`: the command line."""

import sys

from tfp_ar1_cli import main

if __name__ == "__main__":
    sys.exit(main())
