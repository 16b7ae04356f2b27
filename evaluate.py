"""Compare run folders: `python evaluate.py runs/A runs/B`; see `--help`."""

import sys

from torchq.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
