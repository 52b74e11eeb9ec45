#!/usr/bin/env python
"""Train ICE on the embedded dataset without labels, and beside it with the true ones; print the scores."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fastreid_ice.cli.demo import main

if __name__ == "__main__":
    main()
