"""Registered data sets, dataset mappers, and checks of a configuration against its data."""

from mask2former.image_io import read_image

from .checks import check_config_against_data, check_registered, largest_instance_count, warn_of_other_classes
from .dataset_mappers import DATASET_MAPPERS, build_dataset_mapper
from .datasets import register_custom_datasets
from .inspection import Inspection, background_classes, inspect_records

__all__ = [
    "DATASET_MAPPERS",
    "Inspection",
    "background_classes",
    "build_dataset_mapper",
    "check_config_against_data",
    "check_registered",
    "inspect_records",
    "largest_instance_count",
    "read_image",
    "register_custom_datasets",
    "warn_of_other_classes",
]
