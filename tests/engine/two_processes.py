"""Trains in two processes in several ways, for tests that compare with one process.

    python two_processes.py DATA OUTPUT

Both are forked from this process, since most of a short training is its imports. Results are in OUTPUT/rank0.pt and
rank1.pt, by the names of SCENARIOS.
"""

import os
import shutil
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import hooks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

sys.path.insert(0, str(Path(__file__).parent))
import toy
from line import Line, samples, train_line

from mask2former.engine import Trainer, load_config
from mask2former.engine.checkpointer import Mask2FormerCheckpointer
from mask2former.engine.parallel import parallelize
from mask2former.engine.sharding import gather, unsharded
from mask2former.engine.train_loop import StepTrainer

STEPS = 6
TRAINING = {  # in which two processes must do what one does: the model draws no random numbers
    "MODEL__MASK_FORMER__DROPOUT": 0.0,
    "SOLVER__MAX_ITER": STEPS,
    "SOLVER__CHECKPOINT_PERIOD": 3,
    "SOLVER__IMS_PER_BATCH": 4,
    "SOLVER__CLIP_GRADIENTS__ENABLED": True,
    "SOLVER__CLIP_GRADIENTS__CLIP_TYPE": "full_model",
    "SOLVER__CLIP_GRADIENTS__CLIP_VALUE": 0.5,
}
WITHOUT_EVALUATION = {"DATASETS__TEST": "()"}
SHARDED = {"SOLVER__FSDP__ENABLED": True, "SOLVER__FSDP__UNIT_PARAMETERS": 1}
SCENARIOS: dict[str, Callable[[Path], Any]] = {}


def scenario(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Run it in both processes."""
    SCENARIOS[function.__name__] = function
    return function


def train_toy(folder: Path, resume: bool = False, stop_after: int | None = None, **changes: object) -> dict[str, Any]:
    """Train the toy; "losses" of the main process by step, and the "evaluation"."""
    trainer = Trainer(load_config(opts=toy.options(**{"OUTPUT_DIR": folder, **TRAINING, **changes})))
    losses: dict[int, float] = {}

    def record(trainer: Trainer) -> None:
        if comm.is_main_process():
            losses[trainer.iter] = trainer.storage.latest()["total_loss"][0]
        if trainer.iter + 1 == stop_after:
            raise KeyboardInterrupt

    trainer.register_hooks([hooks.CallbackHook(after_step=record)])
    trainer.resume_or_load(resume=resume)
    try:
        trainer.train()
    except KeyboardInterrupt:
        assert stop_after is not None
    return {"losses": losses, "evaluation": trainer._last_eval_results if comm.is_main_process() else None}


@scenario
def one_process_has_a_nan(folder: Path) -> dict[str, Any]:
    return train_line(4, broken=(1, 3))


@scenario
def one_process_has_a_nan_sharded(folder: Path) -> dict[str, Any]:
    return train_line(4, broken=(1, 3), **SHARDED)


@scenario
def one_process_has_too_many(folder: Path) -> dict[str, Any]:
    return train_line(4, broken=(1, 2, 3))


@scenario
def one_process_overflows(folder: Path) -> dict[str, Any]:
    return train_line(2, broken=(1,), value=3e4, dtype=torch.float16, size=0.1)


@scenario
def one_process_overflows_sharded(folder: Path) -> dict[str, Any]:
    return train_line(2, broken=(1,), value=3e4, dtype=torch.float16, size=0.1, **SHARDED)


@scenario
def plain(folder: Path) -> list[dict[str, Any]]:
    return [train_line(3, accumulation) for accumulation in (1, 2)]


@scenario
def static_graph(folder: Path) -> list[dict[str, Any]]:
    return [train_line(3, accumulation, SOLVER__DDP__STATIC_GRAPH=True) for accumulation in (1, 2)]


@scenario
def bfloat16_compression(folder: Path) -> list[dict[str, Any]]:
    return [train_line(3, accumulation, SOLVER__DDP__COMPRESSION="bfloat16") for accumulation in (1, 2)]


@scenario
def float16_compression_of_a_static_graph(folder: Path) -> list[dict[str, Any]]:
    changes = {"SOLVER__DDP__COMPRESSION": "float16", "SOLVER__DDP__STATIC_GRAPH": True}
    return [train_line(3, accumulation, **changes) for accumulation in (1, 2)]


@scenario
def a_parameter_without_a_gradient(folder: Path) -> list[str]:
    def unread(**changes: object) -> str:
        model = Line()
        model.unread = torch.nn.Linear(2, 2)
        cfg = load_config(opts=toy.options(**changes))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        trainer = StepTrainer(parallelize(cfg, model), [samples(2)] * 2, optimizer)
        try:
            with EventStorage():
                trainer.run_step()
                trainer.run_step()
        except RuntimeError as error:
            return str(error)
        return "none"

    return [unread(), unread(SOLVER__DDP__STATIC_GRAPH=True)]


@scenario
def sharded(folder: Path) -> list[dict[str, Any]]:
    return [train_line(3, accumulation, **SHARDED) for accumulation in (1, 2)]


@scenario
def sharded_with_bfloat16_gradients(folder: Path) -> list[dict[str, Any]]:
    return [train_line(3, accumulation, SOLVER__FSDP__REDUCE_DTYPE="bfloat16", **SHARDED) for accumulation in (1, 2)]


@scenario
def toy_plain(folder: Path) -> dict[str, Any]:
    return train_toy(folder)


@scenario
def toy_sharded(folder: Path) -> dict[str, Any]:
    return train_toy(folder, **SHARDED, TEST__BEST_CHECKPOINT__ENABLED=True, TEST__EVAL_PERIOD=3, VIS_PERIOD=3)


@scenario
def toy_sharded_stopped(folder: Path) -> dict[str, Any]:
    return train_toy(folder, stop_after=4, **SHARDED)


def copy_after_three_steps(source: Path, target: Path) -> None:
    """Copy what a run had saved by then."""
    if comm.is_main_process():
        shutil.copy(source / "model_0000002.pth", target)
        (target / "last_checkpoint").write_text("model_0000002.pth")
    comm.synchronize()


@scenario
def toy_sharded_resumed(folder: Path) -> dict[str, Any]:
    copy_after_three_steps(folder.with_name("toy_sharded_stopped"), folder)
    return train_toy(folder, resume=True, **SHARDED, **WITHOUT_EVALUATION)


@scenario
def toy_sharded_resumes_plain(folder: Path) -> dict[str, Any]:
    copy_after_three_steps(folder.with_name("toy_plain"), folder)
    return train_toy(folder, resume=True, **SHARDED, **WITHOUT_EVALUATION)


@scenario
def toy_plain_resumes_sharded(folder: Path) -> dict[str, Any]:
    copy_after_three_steps(folder.with_name("toy_sharded_stopped"), folder)
    return train_toy(folder, resume=True, **WITHOUT_EVALUATION)


@scenario
def more_queries_sharded(folder: Path) -> dict[str, Any]:
    """Weights before and after loading 3 queries of ones into 5."""
    names = [f"predictor.{name}.weight" for name in ("query_feat", "query_embed")]
    layers = OrderedDict(query_feat=torch.nn.Embedding(5, 4), query_embed=torch.nn.Embedding(5, 4))
    layers["class_embed"] = torch.nn.Linear(4, 2, bias=False)
    model = torch.nn.Sequential(OrderedDict(predictor=torch.nn.Sequential(layers)))
    model = parallelize(load_config(opts=toy.options(**SHARDED)), model)
    before = gather(model.state_dict(), keep=True)
    if comm.is_main_process():
        weights = {**dict.fromkeys(names, torch.ones(3, 4)), "predictor.class_embed.weight": torch.ones(2, 4)}
        torch.save({"model": weights}, folder / "queries.pth")
    comm.synchronize()
    Mask2FormerCheckpointer(model).load(str(folder / "queries.pth"))
    after = gather(model.state_dict(), keep=True)
    return {name: (before[name], after[name]) for name in names}


@scenario
def toy_sharded_with_bfloat16(folder: Path) -> dict[str, Any]:
    amp = {"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__DTYPE": "bfloat16"}
    return train_toy(folder, SOLVER__FSDP__PARAM_DTYPE="bfloat16", **amp, **SHARDED)


@scenario
def real_model(folder: Path) -> list[dict[str, torch.Tensor]]:
    """Mask2Former's first weights, and those after two steps in the ordinary way, of a static graph, and sharded."""
    found: list[dict[str, torch.Tensor]] = []
    for changes in ({}, {"SOLVER__DDP__STATIC_GRAPH": True}, SHARDED):
        options = toy.MASK_FORMER | WITHOUT_EVALUATION | {"OUTPUT_DIR": folder, "SOLVER__MAX_ITER": 2}
        options |= {"SOLVER__AMP__ENABLED": False, "SOLVER__OPTIMIZER": "SGD", "SOLVER__BASE_LR": 0.01}
        trainer = Trainer(load_config(opts=toy.options(**{**options, **changes})))
        trainer.resume_or_load(resume=False)
        if not found:
            found.append({name: value.clone() for name, value in trainer.checkpointer.model.state_dict().items()})
        trainer.train()
        found.append(
            torch.load(folder / "model_final.pth", weights_only=True)["model"] if comm.is_main_process() else {}
        )
    return found


@scenario
def shares(folder: Path) -> dict[str, Any]:
    """How many numbers this process holds, of how many; and what it predicts alone."""
    cfg = load_config(opts=toy.options(**SHARDED))
    model = parallelize(cfg, Line())
    held = [sum(parameter.to_local().numel() for parameter in model.parameters())]
    held.append(sum(parameter.numel() for parameter in model.parameters()))
    whole = unsharded(model, Line)
    return {"held": held, "alone": whole(samples(2))["loss"].item() if comm.is_main_process() else None}


@scenario
def no_whole_checkpoint(folder: Path) -> str:
    """The error with which a resume ends in this process; only the first looks at the files."""
    if comm.is_main_process():
        (folder / "model_0000001.pth").write_bytes(b"PK")
    try:
        Mask2FormerCheckpointer(Line(), str(folder)).resume_or_load("")
    except ValueError as error:
        return str(error)
    return "none"


def run(rank: int, output: Path) -> None:
    """Run all scenarios as one of two processes."""
    dist.init_process_group("gloo", init_method=f"file://{output}/store", world_size=2, rank=rank)
    comm.create_local_process_group(2)
    results = {}
    for name, function in SCENARIOS.items():
        (output / name).mkdir(exist_ok=True)
        results[name] = function(output / name)
    torch.save(results, output / f"rank{rank}.pt")
    dist.destroy_process_group()


def main() -> None:
    """Fork, and end as badly as the worst process."""
    data, output = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    toy.register_dataset(data)
    children = []
    for rank in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            code = 1
            try:
                run(rank, output)
                code = 0
            finally:
                sys.stdout.flush()
                if code:
                    import traceback

                    traceback.print_exc()
                os._exit(code)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))


if __name__ == "__main__":
    main()
