#!/usr/bin/env python
"""Write down the identities that a trained model discovers: a table, folders of links, or Market-1501's layout.

tools/label_images.py logs/own --output labelled
tools/label_images.py logs/own --output labelled --links --market datasets/Market-1501-v15.09.15

The folders hold or link to pictures of people, sorted by who they are taken for.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fastreid_ice.cli.label_images import main

if __name__ == "__main__":
    main()
