"""Running an exported file, whatever its format, as a function of PyTorch tensors."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .graph import INPUT_NAME, OUTPUT_NAMES
from .info import INFO_KEY, ExportInfo

__all__ = ["ExportedModel", "load_exported"]

Run = Callable[[Tensor], tuple[Tensor, ...]]


class ExportedModel:
    """An exported model that is ready to run.

    Attributes:
        path: the file.
        info: what it says about itself.
    """

    def __init__(self, path: Path, info: ExportInfo, run: Run) -> None:
        self.path = path
        self.info = info
        self._run = run

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Segment a batch.

        Args:
            images: (N, C, H, W) of the type ``info.input_type``, 0..255, channels in the order ``info.channels``.

        Returns:
            The outputs by name, as told in :class:`~mask2former.export.graph.ExportGraph`.

        Raises:
            ValueError: if the images have another type or another number of channels.
        """
        wanted = getattr(torch, self.info.input_type)
        channels = len(self.info.pixel_mean)
        if images.dtype != wanted or images.dim() != 4 or images.shape[1] != channels:
            raise ValueError(
                f"{self.path} takes images (N, {channels}, H, W) of {wanted}, got {tuple(images.shape)} of "
                f"{images.dtype}; stack pictures of one size, with channels first."
            )
        return dict(zip(OUTPUT_NAMES[self.info.postprocessing], self._run(images), strict=True))


def load_exported(path: str | Path) -> ExportedModel:
    """Open what ``tools/export_model.py`` wrote. ONNX files are data; the other formats are programs, so trust them.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if it is something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; write one with tools/export_model.py.")
    text, run = _LOADERS[_format_of(path)](path)
    return ExportedModel(path, ExportInfo.from_json(text, path), run)


def _format_of(path: Path) -> str:
    """By what is in the file: PyTorch's formats are zip archives that differ in their folders."""
    if not zipfile.is_zipfile(path):
        return "onnx"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any("/aotinductor/" in name for name in names):
        return "aoti"
    return "torchscript" if any("/code/" in name for name in names) else "torch_export"


def _load_onnx(path: Path) -> tuple[str | None, Run]:
    try:
        import onnxruntime
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError("running ONNX needs onnxruntime: pip install 'mask2former[export]'.") from e
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidProtobuf

    try:
        session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
    except (Fail, InvalidProtobuf) as e:
        raise ValueError(f"{path} is not a model that ONNX Runtime can open: {e}") from e

    def run(images: Tensor) -> tuple[Tensor, ...]:
        outputs = session.run(None, {INPUT_NAME: images.cpu().numpy()})
        return tuple(torch.from_numpy(output).to(images.device) for output in outputs)

    return session.get_modelmeta().custom_metadata_map.get(INFO_KEY), run


def _load_torchscript(path: Path) -> tuple[str | None, Run]:
    extra = {INFO_KEY: ""}
    module = torch.jit.load(str(path), _extra_files=extra)
    text = extra[INFO_KEY]
    return text.decode() if isinstance(text, bytes) else text, _without_gradients(module)


def _load_torch_export(path: Path) -> tuple[str | None, Run]:
    extra = {INFO_KEY: ""}
    program = torch.export.load(str(path), extra_files=extra)
    return extra[INFO_KEY], _without_gradients(program.module())


def _load_aoti(path: Path) -> tuple[str | None, Run]:
    import torch._inductor

    module = torch._inductor.aoti_load_package(str(path))
    return module.get_metadata().get(INFO_KEY), _without_gradients(module)


def _without_gradients(module: Callable[[Tensor], tuple[Tensor, ...] | list[Tensor]]) -> Run:
    def run(images: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(module(images))

    return run


_LOADERS: dict[str, Callable[[Path], tuple[str | None, Run]]] = {
    "onnx": _load_onnx,
    "torchscript": _load_torchscript,
    "torch_export": _load_torch_export,
    "aoti": _load_aoti,
}
