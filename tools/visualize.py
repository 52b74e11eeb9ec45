#!/usr/bin/env python
"""Pictures of a run, or its report as one html file.

tools/visualize.py logs/market1501 report
tools/visualize.py logs/market1501 report --no-pictures --output market.html
tools/visualize.py logs/market1501 clusters --most-mixed-first --max-clusters 20
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fastreid_ice.cli.visualize import main

if __name__ == "__main__":
    main()
