"""Compiles the native operators into the package: ``python -m mask2former.ops.build``."""

import sys

from ._build import BuildError, build, build_cuda


def main() -> None:
    """Builds, and says what came of it."""
    try:
        print(f"Built {build()}")
    except BuildError as error:
        sys.exit(f"Mask2Former's native operators were not built: {error}")
    except OSError as error:  # in an installation of another user
        sys.exit(
            f"Mask2Former's native operators were not built: {error}; MASK2FORMER_OPS=jit compiles them into a "
            "cache of yours"
        )
    try:
        print(f"Built {build_cuda()}")
    except BuildError as error:
        print(f"No operators for NVIDIA's GPUs: {error}")


if __name__ == "__main__":
    main()
