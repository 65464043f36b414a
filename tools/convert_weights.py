#!/usr/bin/env python
"""Convert weights between code bases: ``mask2former convert`` under the name of a tool.

python tools/convert_weights.py model_final_94dc52.pkl model.safetensors --to huggingface
python tools/convert_weights.py coco/panoptic/R50 r50/ --to huggingface
python tools/convert_weights.py swin_tiny_patch4_window7_224.pth swin_tiny.pkl
"""

import sys

from mask2former.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
