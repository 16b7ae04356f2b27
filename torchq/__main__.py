"""`torchq`, and `python -m torchq`."""

import signal
import sys


def main() -> int:
    """The command; while its packages are imported, Ctrl-C ends it without a traceback."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from torchq.cli.main import main as command

    signal.signal(signal.SIGINT, before)
    return command()


if __name__ == "__main__":
    sys.exit(main())
