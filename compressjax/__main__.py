"""``python -m compressjax`` is the command ``compressjax``."""

import sys

from compressjax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
