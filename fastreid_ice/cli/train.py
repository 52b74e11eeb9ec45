"""Train or evaluate ICE, with fastreid's command line."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.engine import default_argument_parser, launch
from fastreid.utils import comm

from fastreid_ice.config_files import locate
from fastreid_ice.cores import usable_cores
from fastreid_ice.engine import ICETrainer, setup
from fastreid_ice.engine.checkpoints import load_weights
from fastreid_ice.engine.evaluation_record import record_evaluation
from fastreid_ice.engine.process_memory import keep_freed_memory
from fastreid_ice.engine.reporting import write_report
from fastreid_ice.errors import told_in_one_line


def parser() -> ArgumentParser:
    """fastreid's command line, with ``--debug``."""
    built = default_argument_parser()
    built.description = __doc__
    built.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return built


def run(args: Namespace) -> dict | None:
    """What each process does. Returns the last evaluation's scores in percent, in the main process."""
    cfg = setup(args)
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))  # torch does not ask the container
    if args.eval_only:
        model = ICETrainer.build_model(cfg)
        extras = load_weights(model, cfg.MODEL.WEIGHTS)
        evaluated = ICETrainer.test(cfg, model)
        if comm.is_main_process():
            record_evaluation(cfg, extras, evaluated)
        return evaluated
    trainer = ICETrainer(cfg, resume=args.resume)
    trainer.resume_or_load(resume=args.resume)
    scores = trainer.train()
    if cfg.REPORT.ENABLED and comm.is_main_process():
        write_report(trainer, cfg.REPORT.PICTURES)
    return scores


def main(argv: Sequence[str] | None = None) -> None:
    """Parse a command line (default: the program's) and run it in as many processes as it asks for."""
    args = parser().parse_args(argv)
    if "--debug" in args.opts:  # behind the first key everything counts as keys
        args.opts.remove("--debug")
        args.debug = True
    with told_in_one_line(args.debug):
        if not args.config_file:
            raise ValueError("--config-file is missing, such as configs/ICE/market.yml")
        args.config_file = str(locate(args.config_file))  # the launcher reads its device
        launch(
            run,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )


if __name__ == "__main__":  # python -m fastreid_ice.cli.train
    main()
