"""What ``train_net.py`` and the command ``mask2former`` run: one training or one evaluation."""

import argparse
import logging
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from detectron2.evaluation import verify_results
from detectron2.utils import comm

from mask2former.data import warn_of_other_classes
from mask2former.engine.checkpointer import NAME_A_TRAINED_MODEL, WholeModelCheckpointer
from mask2former.engine.folder_lock import only_training_in
from mask2former.engine.launch import is_first_process, is_own_address, launch
from mask2former.engine.setup import check_data_sets, load_config, setup, warn_of_starting_weights
from mask2former.engine.test_time_augmentation import SegmentorWithTTA
from mask2former.engine.trainer import Trainer
from mask2former.modeling.optimize import keep_freed_memory_of_program, prepare_for_inference

__all__ = ["INTERRUPTED", "main", "run"]

logger = logging.getLogger(__name__)

INTERRUPTED = 130  # what shells say of a program that Ctrl-C has ended


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    """Run one process of the job; returns the results of an evaluation.

    Args:
        args: of ``detectron2.engine.default_argument_parser``.
    """
    cfg = setup(args)
    check_data_sets(cfg, eval_only=args.eval_only)
    warn_of_other_classes(cfg)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = WholeModelCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        if not (args.resume and checkpointer.has_checkpoint()):
            warn_of_starting_weights(args.config_file, cfg, args.opts)
            if not cfg.MODEL.WEIGHTS:
                logger.warning("MODEL.WEIGHTS is empty, so an untrained model is evaluated; %s.", NAME_A_TRAINED_MODEL)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        model = prepare_for_inference(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            SegmentorWithTTA(cfg, model)  # complains now of what it cannot do, not after the evaluation without it
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_with_TTA(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory_of_program()  # every step needs as much as the one before
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def run(args: argparse.Namespace) -> None:
    """Run the job in as many processes as it asks for; Ctrl-C ends the program with a word on how to go on.

    Raises:
        BlockingIOError: another program trains into the same folder.
    """
    is_alone = args.num_machines == 1 and is_own_address(args.dist_url)
    url = "auto" if is_alone else args.dist_url  # a port of its own, for other programs may run
    writes = not args.eval_only and is_first_process(args.machine_rank)
    folder = load_config(args.config_file, args.opts).OUTPUT_DIR if writes else ""
    try:
        with only_training_in(Path(folder)) if folder else nullcontext():
            launch(main, args.num_gpus, args.num_machines, args.machine_rank, url, args=(args,))
    except KeyboardInterrupt:
        hint = "" if args.eval_only else ": --resume goes on from the last checkpoint"
        print(f"Interrupted{hint}.", file=sys.stderr)
        sys.exit(INTERRUPTED)
