"""The tool gives what the evaluation gives."""

from collections.abc import Callable
from pathlib import Path

import evaluate_coco_boundary_ap
import pytest

from mask2former.evaluation import build_evaluator
from tests.evaluation.conftest import Scene, config, make_scene, run  # noqa: F401


def test_saved_results_give_the_evaluations_numbers(
    make_scene: Callable[..., Scene],  # noqa: F811
    config: Callable,  # noqa: F811
    run: Callable,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scene = make_scene(images=4)
    expected = run(build_evaluator(config(TEST__BOUNDARY_AP=True), scene.name), scene.inputs, scene.outputs)["boundary"]
    capsys.readouterr()
    found = evaluate_coco_boundary_ap.main(
        [
            "--gt-json-file",
            str(scene.folder / "instances.json"),
            "--dt-json-file",
            str(tmp_path / "out" / "inference" / "coco_instances_results.json"),
        ]
    )
    assert found == pytest.approx(expected, nan_ok=True)
    assert f"{expected['AP']:.3f}" in capsys.readouterr().out
