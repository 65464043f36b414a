"""``python -m mask2former.cli`` is the command ``mask2former``."""

import sys

from mask2former.cli import main

if __name__ == "__main__":
    sys.exit(main())
