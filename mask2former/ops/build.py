"""Compiles the native operators into the package: ``python -m mask2former.ops.build``."""

import sys

from ._build import BuildError, build


def main() -> None:
    """Builds, and says what came of it."""
    try:
        print(f"Built {build()}")
    except BuildError as error:
        sys.exit(f"Mask2Former's native operators were not built: {error}")


if __name__ == "__main__":
    main()
