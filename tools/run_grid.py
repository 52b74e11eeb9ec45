#!/usr/bin/env python
"""Train a grid of config overrides x seeds, one run after another, and print their table.

tools/run_grid.py --config-file configs/ICE/demo.yml --output logs/grid --seeds 1 2 3 --grid CLUSTERING.EPS=0.5,0.55
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fastreid_ice.cli.grid import main

if __name__ == "__main__":
    main()
