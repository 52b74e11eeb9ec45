#!/usr/bin/env python
"""Train or evaluate ICE, with fastreid's command line.

tools/train_net.py --config-file configs/ICE/market.yml
tools/train_net.py --config-file configs/ICE/market.yml --resume
tools/train_net.py --config-file configs/ICE/market.yml --eval-only MODEL.WEIGHTS logs/model_best.pth
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid.engine import default_argument_parser, launch
from fastreid.utils.checkpoint import Checkpointer

from fastreid_ice.engine import ICETrainer, setup


def main(args):
    cfg = setup(args)
    if args.eval_only:
        if not cfg.MODEL.WEIGHTS:
            raise ValueError("--eval-only needs MODEL.WEIGHTS, the checkpoint to evaluate")
        cfg.defrost()
        cfg.MODEL.BACKBONE.PRETRAIN = False
        model = ICETrainer.build_model(cfg)
        Checkpointer(model).load(cfg.MODEL.WEIGHTS)
        return ICETrainer.test(cfg, model)

    trainer = ICETrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
