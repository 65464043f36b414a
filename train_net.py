#!/usr/bin/env python
"""Train or evaluate: ``python train_net.py --config-file FILE [--eval-only] [--resume] [KEY VALUE ...]``."""

import mask2former  # noqa: F401, I001  before Detectron2: imports it without its libraries' warnings, or says how to get it
from detectron2.engine import default_argument_parser

from mask2former.engine import Trainer, setup
from mask2former.engine.run import main, run

__all__ = ["Trainer", "main", "setup"]

if __name__ == "__main__":
    run(default_argument_parser().parse_args())
