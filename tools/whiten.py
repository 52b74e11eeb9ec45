#!/usr/bin/env python
"""Whiten a trained model's embedding by the covariance within the clusters of its training images.

tools/whiten.py logs/market1501/plus_osnet_x0_25_cpu/model_final.pth --output logs/market1501/plus_whitened

The result is a checkpoint like any other: evaluate, export or search with it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fastreid_ice.cli.whiten import main

if __name__ == "__main__":
    main()
