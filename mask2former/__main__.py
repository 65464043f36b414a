"""``python -m mask2former`` is the command ``mask2former``."""

import sys

from mask2former.cli import main

if __name__ == "__main__":
    sys.exit(main())
