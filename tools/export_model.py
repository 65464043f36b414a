#!/usr/bin/env python
"""Export a trained model, and check the file against the model on pictures.

Example::

    python tools/export_model.py --config-file FILE --format onnx --output model.onnx --opts MODEL.WEIGHTS W

This is ``mask2former export`` with a configuration in the place of a model's name. docs/export.md tells what the
formats and the outputs are. The command fails, with exit code 1, if the file's results are further from the
model's than ``--tolerance``.
"""

import argparse
import logging
from collections.abc import Sequence

from mask2former.engine import load_config
from mask2former.inference.exporting import add_export_arguments, check_export_arguments, export_model
from mask2former.inference.runs import run_tool


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", help="configuration of the model")
    add_export_arguments(parser)
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs, among them MODEL.WEIGHTS"
    )
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    check_export_arguments(args)
    export_model(load_config(args.config_file, args.opts), args)


if __name__ == "__main__":
    run_tool(main)
