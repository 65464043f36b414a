"""``SOLVER.CUDA_GRAPHS``; what it turns on is in ``tests/modeling/optimize/test_training_graphs.py``."""

import pytest
from detectron2.utils import comm
from torch import nn

from mask2former.engine import Trainer, load_config, training_graphs
from mask2former.engine.training_graphs import WITHOUT_GRAPHS, use_graphs

GRAPHS = ["SOLVER.CUDA_GRAPHS", "True"]
ON = {"MODEL.MASK_FORMER.ACTIVATION_CHECKPOINTING": "['backbone']"}


@pytest.mark.parametrize("key", WITHOUT_GRAPHS)
def test_what_does_not_go_together(key):
    cfg = load_config(opts=[*GRAPHS, key, ON.get(key, "True")])
    with pytest.raises(ValueError, match=f"{key} .*, which do not go together"):
        use_graphs(cfg, nn.Linear(2, 2))


def on_a_gpu():
    cfg = load_config(opts=GRAPHS).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cuda"  # which a configuration that is loaded has only where there is one
    return cfg


def test_norms_that_wait_for_other_processes(monkeypatch):
    recorded, model = [], nn.Sequential(nn.SyncBatchNorm(2))
    monkeypatch.setattr(training_graphs, "record_training_graphs", recorded.append)
    use_graphs(on_a_gpu(), model)
    assert recorded == [model]
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="synchronised batch norms"):
        use_graphs(on_a_gpu(), model)


def test_other_models_on_a_gpu():
    with pytest.raises(ValueError, match="the model is a Linear on 'cpu'"):
        use_graphs(on_a_gpu(), nn.Linear(2, 2))


def test_the_trainer_looks_at_it(toy_config):
    Trainer(toy_config(SOLVER__CUDA_GRAPHS=True))  # on a CPU without
    with pytest.raises(ValueError, match="which do not go together"):
        Trainer(toy_config(SOLVER__CUDA_GRAPHS=True, SOLVER__FSDP__ENABLED=True))
