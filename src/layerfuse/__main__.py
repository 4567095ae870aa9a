"""``python -m layerfuse``."""

import sys

from layerfuse.cli import main

if __name__ == "__main__":
    sys.exit(main())
