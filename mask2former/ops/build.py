"""Compiles the native operators into the package: ``python -m mask2former.ops.build``."""

import sys

from ._build import BuildError, build, build_cuda


def main() -> None:
    """Builds, and says what came of it."""
    try:
        print(f"Built {build()}")
    except BuildError as error:
        sys.exit(f"Mask2Former's native operators were not built: {error}")
    try:
        print(f"Built {build_cuda()}")
    except BuildError as error:
        print(f"No operators for NVIDIA's GPUs: {error}")


if __name__ == "__main__":
    main()
