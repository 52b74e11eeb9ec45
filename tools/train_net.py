#!/usr/bin/env python
"""Train or evaluate ICE, with fastreid's command line.

tools/train_net.py --config-file configs/ICE/market.yml
tools/train_net.py --config-file configs/ICE/market.yml --resume
tools/train_net.py --config-file configs/ICE/market.yml --eval-only MODEL.WEIGHTS logs/model_best.pth
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fastreid_ice.cli.train import main

if __name__ == "__main__":
    main()
