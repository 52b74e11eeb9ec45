#!/usr/bin/env python
"""Write a trained model for others: fastreid's model zoo, ONNX, TorchScript, safetensors (see docs/export.md).

tools/export_model.py logs/market1501/ice_R50 --output zoo
tools/export_model.py logs/market1501/ice_R50 --format onnx --output exported
tools/export_model.py logs/market1501/ice_R50/model_0007.pth --format torchscript --input raw255 --output exported
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fastreid_ice.cli.export import main

if __name__ == "__main__":
    main()
