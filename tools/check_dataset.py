#!/usr/bin/env python
"""Look at a folder of images before training on it: cameras, sizes, broken and duplicate files, and a config.

tools/check_dataset.py crops
tools/check_dataset.py crops --camera-from folder --output logs/crops --write-config my.yml
tools/check_dataset.py crops --camera-from pattern --pattern '(?P<camera>cam[0-9]+)_'
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fastreid_ice.cli.check_dataset import main

if __name__ == "__main__":
    main()
