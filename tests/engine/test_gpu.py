"""Steps of training on a GPU: ``make test-gpu``."""

import itertools

import pytest
import torch
from detectron2.utils.events import EventStorage

from mask2former.engine.train_loop import StepTrainer
from mask2former.modeling.optimize import prepare_for_training, record_training_graphs
from tests.modeling.conftest import make_tiny_cfg
from tests.modeling.sure_model import build, make_batch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

GPU = "cuda"


def test_scaled_steps_by_graphs():
    """In float16, two batches to a step: gradients of the first overflow, which the next ones do not see."""
    losses = []
    for has_graphs in (False, True):
        model = prepare_for_training(build(make_tiny_cfg(), {}).train().to(GPU))
        if has_graphs:
            record_training_graphs(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        loader = itertools.repeat(make_batch())
        trainer = StepTrainer(model, loader, optimizer, accumulation_steps=2, autocast_dtype=torch.float16)
        trainer.grad_scaler = torch.amp.GradScaler(GPU, init_scale=2.0**20, backoff_factor=2.0**-15)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        before = [parameter.detach().clone() for parameter in trained]
        with EventStorage() as storage:
            for trainer.iter in range(4):
                torch.manual_seed(trainer.iter)
                trainer.run_step()
                losses.append(storage.latest()["total_loss"][0])
                if trainer.iter == 0:
                    assert trainer.skipped_steps.total == 1
                    assert all(map(torch.equal, trained, before))
        assert trainer.skipped_steps.total < 4
        assert not all(map(torch.equal, trained, before))
        assert all(parameter.isfinite().all() for parameter in trained)
    assert losses[4:] == pytest.approx(losses[:4], rel=0.05)
    assert len(model.run_network._recordings) == 1
