"""Compiled functions where numba finds no place to keep them."""

import os
import subprocess
import sys
import tempfile

from fastreid_ice import compiled

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
import numpy as np
import fastreid_ice.clustering.numba_kernels, fastreid_ice.evaluation  # numba refused while they were defined
from fastreid_ice.clustering.numba_kernels.common import dot
assert dot(np.ones(8, np.float32), np.ones(8, np.float32)) == 8
"""


def test_a_folder_that_others_can_write_is_not_used(tmp_path, monkeypatch):
    """What numba reads from it is run."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = compiled._own_folder()
    assert own == compiled._own_folder() and own.stat().st_mode & 0o777 == 0o700
    own.chmod(0o777)
    assert compiled._own_folder() != own
    own.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    own.symlink_to(tmp_path / "elsewhere")
    assert compiled._own_folder() != own
    own.unlink()
    own.write_text("a file")
    assert compiled._own_folder() != own


def test_a_user_without_a_home_can_cluster(tmp_path):
    clean = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("fastreid_ice_numba_*")
    assert any(path.suffix == ".nbi" for path in folder.rglob("*"))
