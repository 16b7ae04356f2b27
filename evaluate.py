"""Compare run folders: `python evaluate.py runs/A runs/B`; see `--help`."""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # While packages are imported, Ctrl-C prints no traceback.
    from torchq.cli.evaluate import main

    sys.exit(main())
