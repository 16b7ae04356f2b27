"""Train a learner on a family of tasks: `python train.py --algo stlrq`; see `--help`."""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # While packages are imported, Ctrl-C prints no traceback.
    from torchq.cli.train import main

    sys.exit(main())
