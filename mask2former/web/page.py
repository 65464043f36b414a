"""The page, made with Gradio: a picture, a task and a threshold on the left, the segments on the right."""

import functools
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mask2former.inference import Result, Segmenter
from mask2former.visualization import Task
from mask2former.web.view import Region, find_regions, render_view, view_script, view_style

__all__ = ["build_page"]

_KEEP_FILES = 3600  # seconds that downloads are kept, and between looking for old ones


def build_page(model: Segmenter, title: str = "Mask2Former") -> Any:
    """Build the page of a model.

    Args:
        model: a trained one.
        title: the page's heading.

    Returns:
        ``gradio.Blocks``, ready to ``launch``.

    Raises:
        ModuleNotFoundError: without the package ``gradio``.
        ValueError: the model's configuration turns no task on.
    """
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the page needs Gradio: pip install 'mask2former[web]'") from error
    tasks = model.offered_tasks
    if not tasks:
        raise ValueError("the configuration turns no task on; set one of MODEL.MASK_FORMER.TEST.*_ON.")

    def segment(picture: str | None, task: Task, threshold: float) -> tuple[str, str | None]:
        if picture is None:
            return "", None
        try:
            result = model.predict(picture, task=task, threshold=None if task == "semantic" else threshold)
        except ValueError as error:  # which need not tell where the server keeps it
            message = str(error).replace(picture, Path(picture).name)
            raise gradio.Error(message, print_exception=False) from error  # nothing for the server's log
        regions = find_regions(result, task)
        return render_view(result, task, regions), str(_pack(result, task, regions, Path(download.GRADIO_CACHE)))

    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(_KEEP_FILES, _KEEP_FILES)) as page:
        gradio.Markdown(f"# {title}\nDrop a picture. Move the mouse over a segment to see what it is.")
        with gradio.Row():
            with gradio.Column(scale=1):
                # The file, because Gradio makes white of 16 bits, and indices of a GIF.
                picture: Any = gradio.Image(type="filepath", image_mode=None, label="Picture", elem_id="picture")
                picture.preprocess = functools.partial(_find_upload, picture.preprocess)
                task = gradio.Radio([*tasks], value=tasks[0], label="Task", elem_id="task")
                threshold = gradio.Slider(0, 1, value=0.5, step=0.05, label="Least score", elem_id="threshold")
                download = gradio.DownloadButton("Download the masks", elem_id="download")
            with gradio.Column(scale=2):
                view = gradio.HTML(
                    js_on_load=view_script(), css_template=view_style(), apply_default_css=False, elem_id="segments"
                )
        inputs, outputs = [picture, task, threshold], [view, download]
        picture.change(segment, inputs, outputs, api_name="segment")
        task.change(segment, inputs, outputs, api_visibility="private")
        threshold.release(segment, inputs, outputs, api_visibility="private")
    return page


def _find_upload(preprocess: Callable[[Any], Any], upload: Any) -> Any:
    """The file of an upload, which Gradio would open, and where it cannot, tell nobody why."""
    return upload.path if upload is not None and upload.path else preprocess(upload)


def _pack(result: Result, task: Task, regions: list[Region], cache: Path) -> Path:
    """A ZIP of what ``Result.save`` writes and of a PNG for each region, its pixels being 255."""
    cache.mkdir(parents=True, exist_ok=True)
    packed = Path(tempfile.mkdtemp(dir=cache)) / "masks.zip"
    with zipfile.ZipFile(packed, "w") as archive, tempfile.TemporaryDirectory() as folder:
        for path in sorted(result.save(Path(folder) / "picture.png", task=task).paths):
            if path.is_file():
                archive.write(path, path.name)
        for number, region in enumerate(regions, start=1):
            name = "".join(c if c.isalnum() else "_" for c in region.name)
            _, png = cv2.imencode(".png", region.mask().astype(np.uint8) * 255)
            archive.writestr(f"masks/{number:03}_{name}.png", png.tobytes())
    return packed
