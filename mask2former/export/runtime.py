"""Running an exported file, whatever its format, as a function of PyTorch tensors."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .graph import INPUT_NAME, MAX_SIZE, MIN_SIZE, OUTPUT_NAMES
from .info import INFO_KEY, ExportInfo

__all__ = ["ExportedModel", "is_exported", "load_exported"]

Run = Callable[[Tensor], tuple[Tensor, ...]]
Network = Callable[[Tensor], dict[str, Tensor]]


class ExportedModel:
    """An exported model that is ready to run.

    Attributes:
        path: the file.
        info: what it says about itself.
        device: where images go best; any will do for ONNX files.
    """

    def __init__(self, path: Path, info: ExportInfo, run: Run, device: str = "cpu") -> None:
        self.path = path
        self.info = info
        self.device = device
        self._run = run

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Segment a batch.

        Args:
            images: (N, C, H, W) of the type ``info.input_type``, 0..255, channels in the order ``info.channels``.

        Returns:
            The outputs by name, as told in :class:`~mask2former.export.graph.ExportGraph`.

        Raises:
            ValueError: if the images have another type or number of channels, or are too small or large.
        """
        wanted = getattr(torch, self.info.input_type)
        channels = len(self.info.pixel_mean)
        if images.dtype != wanted or images.dim() != 4 or images.shape[1] != channels:
            raise ValueError(
                f"{self.path} takes images (N, {channels}, H, W) of {wanted}, got {tuple(images.shape)} of "
                f"{images.dtype}; stack pictures of one size, with channels first."
            )
        if not all(MIN_SIZE <= side <= MAX_SIZE for side in images.shape[2:]):
            raise ValueError(
                f"{self.path} takes images of {MIN_SIZE} to {MAX_SIZE} pixels a side, got {images.shape[2]} x "
                f"{images.shape[3]}; resize them before."
            )
        return dict(zip(OUTPUT_NAMES[self.info.postprocessing], self._run(images), strict=True))

    def around(self, change: Callable[[Network], Network]) -> "ExportedModel":
        """The same file, run by what ``change`` makes of this: a function of the same outputs, in their order."""
        changed = change(self)
        return ExportedModel(self.path, self.info, lambda images: tuple(changed(images).values()), self.device)


def is_exported(path: Path) -> bool:
    """Whether a file is named like ONNX's, or an archive of one of PyTorch's three formats."""
    return path.suffix.lower() == ".onnx" or (path.is_file() and _format_of(path) not in (None, "onnx"))


def load_exported(path: str | Path, device: str | None = None) -> ExportedModel:
    """Open what ``tools/export_model.py`` wrote. ONNX files are data; the other formats are programs, so trust them.

    Args:
        path: the file.
        device: where to compute: "cpu", or "cuda", with a number or not. None takes, for ONNX, the best that ONNX
            Runtime was built for, and for PyTorch's formats what they were exported on: they run nowhere else.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if it is something else, or cannot run there.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; write one with tools/export_model.py.")
    export_format = _format_of(path)
    if export_format in (None, "onnx"):
        text, run = _load_onnx(path, device)
        return ExportedModel(path, ExportInfo.from_json(text, path), _RunOfFile(run, path, device))
    text, run = _LOADERS[export_format](path)
    info = ExportInfo.from_json(text, path)
    if device is not None and not device.startswith(info.device):
        raise ValueError(
            f"{path} was exported on {info.device!r} and runs nowhere else, but the device is {device!r}; export it "
            "there (MODEL.DEVICE), or take ONNX."
        )
    return ExportedModel(path, info, _RunOfFile(run, path, device), device or info.device)


class _RunOfFile:
    """What runs a file: copies share it, and a process that gets it pickled opens the file by itself."""

    def __init__(self, run: Run, path: Path, device: str | None) -> None:
        self._run = run
        self._opened = path.absolute(), device

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        return self._run(images)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_RunOfFile":
        return self

    def __reduce__(self) -> tuple[Callable[..., Run], tuple[Path, str | None]]:
        return _open_again, self._opened


def _open_again(path: Path, device: str | None) -> Run:
    return load_exported(path, device)._run


def _format_of(path: Path) -> str | None:
    """By what is in the file: PyTorch's formats are zip archives of different folders. None: another archive."""
    if not zipfile.is_zipfile(path):
        return "onnx"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    for export_format, mark in (("aoti", "/aotinductor/"), ("torchscript", "/code/"), ("torch_export", "/archive_fo")):
        if any(mark in name for name in names):
            return export_format
    return None


def _load_onnx(path: Path, device: str | None) -> tuple[str | None, Run]:
    try:
        import onnxruntime
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError("running ONNX needs onnxruntime: pip install 'mask2former[export]'.") from e

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    providers = _providers(onnxruntime, device)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as e:  # one of a dozen, which have no class in common
        raise ValueError(f"{path} is not a model that ONNX Runtime can open: {e}") from e

    def run(images: Tensor) -> tuple[Tensor, ...]:
        outputs = session.run(None, {INPUT_NAME: images.cpu().numpy()})
        return tuple(torch.from_numpy(output).to(images.device) for output in outputs)

    return session.get_modelmeta().custom_metadata_map.get(INFO_KEY), run


def _providers(onnxruntime: Any, device: str | None) -> list[Any]:
    available: list[str] = onnxruntime.get_available_providers()
    if device is None:
        return available
    wanted = "CPUExecutionProvider" if device == "cpu" else "CUDAExecutionProvider"
    if wanted not in available:
        raise ValueError(
            f"the device is {device!r}, but this ONNX Runtime has no {wanted}, only {', '.join(available)}; install "
            "onnxruntime-gpu, or take the device 'cpu'."
        )
    number = device.partition(":")[2]
    return [(wanted, {"device_id": number})] if number else [wanted]


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


_LOADERS: dict[str | None, Callable[[Path], tuple[str | None, Run]]] = {
    "torchscript": _load_torchscript,
    "torch_export": _load_torch_export,
    "aoti": _load_aoti,
}
