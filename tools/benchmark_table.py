#!/usr/bin/env python
"""Make a table from the results of runs: seeds aggregated, methods x test sets.

tools/benchmark_table.py logs/market1501 logs/msmt17
tools/benchmark_table.py logs/market1501 --published --format latex --output table.tex
tools/benchmark_table.py logs/grid --ablation
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fastreid_ice.cli.table import main

if __name__ == "__main__":
    main()
