"""`python -m torchq`."""

import sys

from torchq.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
