"""``python -m speechbrain_ssl COMMAND``, also installed as speechbrain-ssl."""

import sys

from speechbrain_ssl.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
