#!/usr/bin/env python
"""Draw the ground truth of a data set after augmentation: ``mask2former browse`` under the name of a tool.

    python tools/browse_dataset.py --config-file configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml \\
      --output output/browse --number 25 --sheet
    python tools/browse_dataset.py --config-file FILE --output output/browse --split test --no-augmentation
"""

import sys

from mask2former.cli import main

if __name__ == "__main__":
    sys.exit(main(["browse", *sys.argv[1:]]))
