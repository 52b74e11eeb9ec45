#!/usr/bin/env python
"""Try values of eps and min_samples on the features of a run: a table and a picture.

tools/sweep_eps.py logs/own
tools/sweep_eps.py logs/own --eps 0.4:0.7:0.02 --min-samples 2,3,4
tools/sweep_eps.py --features logs/own/eps_sweep/features.npz --k1 20
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fastreid_ice.cli.sweep_eps import main

if __name__ == "__main__":
    main()
