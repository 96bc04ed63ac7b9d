"""``python -m speechbrain_ssl COMMAND``, also installed as speechbrain-ssl."""

import sys

from speechbrain_ssl.cli.main import main


def run() -> None:
    """Runs the command line and exits with its status."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
