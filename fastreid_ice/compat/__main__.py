"""Run a script of fastreid's behind the repairs.

python -m fastreid_ice.compat tools/train_net.py --config-file configs/Market1501/bagtricks_R50.yml --eval-only ...
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastreid_ice.compat.script import run_script


def main() -> None:
    """Run the script that the command line names; its exit code is ours, and 1 where there is no such file."""
    parser = argparse.ArgumentParser(prog="python -m fastreid_ice.compat", description=__doc__.splitlines()[0])
    parser.add_argument("script", type=Path, help="a Python file, such as fastreid's tools/train_net.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what the script is given")
    given = parser.parse_args()
    if not given.script.is_file():
        sys.exit(f"error: there is no script {given.script}")
    run_script(given.script, given.arguments)


if __name__ == "__main__":
    main()
