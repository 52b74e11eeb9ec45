#!/usr/bin/env python
"""Train what was published and say whether the numbers came out.

tools/reproduce.py --configs market --num-gpus 4
tools/reproduce.py --plan
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fastreid_ice.cli.reproduce import main

if __name__ == "__main__":
    main()
