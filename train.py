"""Train a learner on a family of tasks: `python train.py --algo stlrq`; see `--help`."""

import sys

from torchq.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
