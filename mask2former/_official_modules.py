"""Modules of the official release that are elsewhere here, by their old names: ``import mask2former.maskformer_model``.

Such a module is made when it is imported first, and holds what the modules that stand for it export.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["OFFICIAL_MODULES"]

_PACKAGE = __name__.rpartition(".")[0]

# Below mask2former: the old name, and what stands for it. Those of nothing are packages.
OFFICIAL_MODULES: dict[str, tuple[str, ...]] = {
    "maskformer_model": ("modeling.mask_former",),
    "test_time_augmentation": ("engine.test_time_augmentation",),
    "data.dataset_mappers.coco_instance_new_baseline_dataset_mapper": ("data.dataset_mappers.instance",),
    "data.dataset_mappers.coco_panoptic_new_baseline_dataset_mapper": ("data.dataset_mappers.panoptic",),
    "data.dataset_mappers.mask_former_instance_dataset_mapper": ("data.dataset_mappers.instance",),
    "data.dataset_mappers.mask_former_panoptic_dataset_mapper": ("data.dataset_mappers.panoptic",),
    "data.dataset_mappers.mask_former_semantic_dataset_mapper": ("data.dataset_mappers.semantic",),
    "data.datasets.register_ade20k_full": ("data.datasets.official_categories",),
    "data.datasets.register_ade20k_panoptic": ("data.datasets.official_categories",),
    "data.datasets.register_coco_panoptic_annos_semseg": ("data.datasets.coco_panoptic",),
    "data.datasets.register_mapillary_vistas": ("data.datasets.official_categories",),
    "modeling.meta_arch": (),
    "modeling.meta_arch.mask_former_head": ("modeling.head", "modeling.build"),
    "modeling.meta_arch.per_pixel_baseline": ("modeling.per_pixel_baseline",),
    "modeling.pixel_decoder.ops": (),
    "modeling.pixel_decoder.ops.functions": ("modeling.pixel_decoder.official_deformable",),
    "modeling.pixel_decoder.ops.functions.ms_deform_attn_func": ("modeling.pixel_decoder.official_deformable",),
    "modeling.pixel_decoder.ops.modules": ("modeling.pixel_decoder.official_deformable",),
    "modeling.pixel_decoder.ops.modules.ms_deform_attn": ("modeling.pixel_decoder.official_deformable",),
    "modeling.transformer_decoder.position_encoding": ("modeling.official_layers",),
    "modeling.transformer_decoder.transformer": ("modeling.official_layers",),
    "utils": (),
    "utils.misc": ("structures.nested_tensor",),
}


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != _PACKAGE or name not in OFFICIAL_MODULES:
            return None
        has_modules = any(other.startswith(f"{name}.") for other in OFFICIAL_MODULES)
        return ModuleSpec(fullname, self, is_package=has_modules)

    def exec_module(self, module: ModuleType) -> None:
        for place in OFFICIAL_MODULES[module.__name__.partition(".")[2]]:
            exporting = import_module(f"{_PACKAGE}.{place}")
            vars(module).update({name: getattr(exporting, name) for name in exporting.__all__})


sys.meta_path.append(_Finder())
