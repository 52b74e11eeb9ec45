"""The authors' program (github.com/chenhao2345/ICE), unchanged on disk, on a CPU with this package's small network.

    git clone https://github.com/chenhao2345/ICE
    python benchmarks/authors_code.py ICE --weights osnet_x0_25_msmt17.pth --padding 5 -- \\
        -dt market1501 --data-dir DATA --logs-dir LOGS --height 128 --width 64 -j 1 --alpha 0.99 \\
        --epochs 10 --iters 100 --warmup-step 0 --eval-step 5 --seed 1

Behind ``--`` come the program's own arguments; DATA/market1501 holds ``bounding_box_train``, ``query`` and
``bounding_box_test``. Its data pipeline, sampler, losses, clustering, memory and evaluation are untouched. What is
replaced while it runs: its network by the config's (OSNet x0.25 with fastreid's bottleneck, as in ``market_cpu.yml``),
``cuda`` by nothing, the pixels of padding, and faiss's search on a GPU by the one on the CPU.
"""

from __future__ import annotations

import argparse
import importlib
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from torch import Tensor, nn
from torchvision import transforms as T

from fastreid_ice.config_files import load_config
from fastreid_ice.modeling.heads import MemoryBankHead
from fastreid_ice.modeling.pretrained import build_pretrained_backbone

FAISS_ON_THE_CPU = 3  # of the program's four ways to search


class Network(nn.Module):
    """In the place of the program's: embeddings behind the bottleneck, of length 1 in evaluation mode.

    Args:
        cfg: its backbone and bottleneck.
    """

    def __init__(self, cfg: CfgNode):
        super().__init__()
        self.backbone = build_pretrained_backbone(cfg)
        self.head = MemoryBankHead(cfg)
        del self.head.memory
        self.head.memory = None

    def forward(self, images: Tensor) -> Tensor:
        embeddings = self.head(self.backbone(images))
        return embeddings if self.training else F.normalize(embeddings)


def stay_on_the_cpu() -> None:
    """``cuda()`` gives what it is called on, and so does ``to`` a GPU; whole objects are loaded, as torch once did."""
    moved, load = torch.Tensor.to, torch.load

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        target = args[0] if args else kwargs.get("device")
        on_gpu = isinstance(target, (str, torch.device)) and torch.device(target).type == "cuda"
        return self if on_gpu else moved(self, *args, **kwargs)

    torch.Tensor.to = to  # type: ignore[assignment, method-assign]
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    nn.Module.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    torch.load = lambda *args, **kwargs: load(*args, **{**kwargs, "weights_only": False})


def pad(pixels: int) -> None:
    """Every ``Pad`` of the program takes so many pixels."""
    original = T.Pad
    T.Pad = lambda *args, **kwargs: original(pixels)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, help="of the authors' repository")
    parser.add_argument("--weights", default="", help="start of the network; default: random")
    parser.add_argument("--padding", type=int, default=5)
    given = list(sys.argv[1:] if argv is None else argv)
    end = given.index("--") if "--" in given else len(given)
    args, own = parser.parse_args(given[:end]), given[end + 1 :]
    program = args.clone.resolve() / "examples" / "unsupervised_train.py"
    if not program.is_file():
        parser.error(f"{args.clone} is no clone of the authors' repository: there is no {program}")
    start = ["PRETRAIN_PATH", args.weights] if args.weights else ["PRETRAIN", False]
    cfg = load_config("ICE/market_cpu.yml", [f"MODEL.BACKBONE.{start[0]}", start[1]])
    stay_on_the_cpu()
    pad(args.padding)
    sys.path.insert(0, str(args.clone.resolve()))
    models, search = importlib.import_module("ice.models"), importlib.import_module("ice.utils.faiss_rerank")
    models.create = lambda *args, **kwargs: Network(cfg)  # type: ignore[attr-defined]
    k1, k2, printed, _, half = search.compute_jaccard_distance.__defaults__
    search.compute_jaccard_distance.__defaults__ = (k1, k2, printed, FAISS_ON_THE_CPU, half)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    sys.argv = [program.name, *own]
    runpy.run_path(str(program), run_name="__main__")


if __name__ == "__main__":
    main()
