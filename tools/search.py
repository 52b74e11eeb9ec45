#!/usr/bin/env python
"""Find the images of a folder that are most similar to a query image.

tools/search.py --model logs/market --query somebody.jpg --gallery crops
tools/search.py --model model_best.pth --query a.jpg b.jpg --gallery crops --top-k 20 --output found.png --csv found.csv
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fastreid_ice.cli.search import main

if __name__ == "__main__":
    main()
