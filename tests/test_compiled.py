"""Compiled functions where numba finds no place to keep them."""

import os
import subprocess
import sys

# numba as in a container whose user can write neither the installation nor a home.
SCRIPT = """
import os, sys, tempfile
tempfile.tempdir = sys.argv[1]
from numba.core import caching
def refused(self):
    raise OSError("read-only")
for name in dir(caching):
    locator = getattr(caching, name)
    if isinstance(locator, type) and ("InTree" in name or "UserWide" in name):
        locator.ensure_cache_path = refused
import torch
from fastreid_ice.clustering import Clusterer, ClusteringConfig
torch.manual_seed(0)
config = ClusteringConfig(k1=4, k2=2, eps=0.9, min_samples=2, backend="numba")
print(Clusterer(config)(torch.nn.functional.normalize(torch.randn(12, 4), dim=1)).labels.tolist())
"""


def test_a_user_without_a_home_can_cluster(tmp_path):
    clean = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("fastreid_ice_numba_*")
    assert any(path.suffix == ".nbi" for path in folder.rglob("*"))
