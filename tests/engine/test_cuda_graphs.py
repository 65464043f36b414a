"""``SOLVER.CUDA_GRAPHS``; what it turns on is in ``tests/modeling/optimize/test_training_graphs.py``."""

import pytest
from torch import nn

from mask2former.engine import Trainer, load_config
from mask2former.engine.cuda_graphs import WITHOUT_GRAPHS, use_graphs

ON = {"MODEL.MASK_FORMER.ACTIVATION_CHECKPOINTING": "['backbone']"}


@pytest.mark.parametrize("key", WITHOUT_GRAPHS)
def test_what_does_not_go_together(key):
    cfg = load_config(opts=["SOLVER.CUDA_GRAPHS", "True", key, ON.get(key, "True")])
    with pytest.raises(ValueError, match=f"{key} .*, which do not go together"):
        use_graphs(cfg, nn.Linear(2, 2))


def test_the_trainer_looks_at_it(toy_config):
    with pytest.raises(ValueError, match="a GPU, but the model is a ToySegmenter on 'cpu'"):
        Trainer(toy_config(SOLVER__CUDA_GRAPHS=True))
