#!/usr/bin/env python
"""Train or evaluate: ``python train_net.py --config-file FILE [--eval-only] [--resume] [KEY VALUE ...]``."""

import argparse
from typing import Any

from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from mask2former.engine import Trainer, launch, setup
from mask2former.engine.checkpointer import Mask2FormerCheckpointer


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    """Run one process of the job; returns the results of an evaluation."""
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        Mask2FormerCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))
