"""Write the report of a training again: ``report.html`` in its output folder.

Any training of this repository that has validation data will do, not only those of ``mask2former train --data``.
"""

import argparse
from pathlib import Path

from mask2former.inference.runs import run_tool
from mask2former.own_data.report import write_report


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the folder of the training (OUTPUT_DIR)")
    parser.add_argument(
        "--evaluate", action="store_true", help="evaluate the best model again first; else only if that was never done"
    )
    arguments = parser.parse_args()
    print(write_report(arguments.output, evaluate=arguments.evaluate))


if __name__ == "__main__":
    run_tool(main)
