"""Lets the tests of this folder import deformable.py and other_instructions.py, which are beside them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
