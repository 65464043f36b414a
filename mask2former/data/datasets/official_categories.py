"""Classes of the official data sets as the official release lists them, for programs that import its lists."""

from .tables import read_table

__all__ = ["ADE20K_150_CATEGORIES", "ADE20K_SEM_SEG_FULL_CATEGORIES", "MAPILLARY_VISTAS_SEM_SEG_CATEGORIES"]

# The 150 classes, in the model's order: "id", "name", "isthing" and "color".
ADE20K_150_CATEGORIES = read_table("ade20k")

# The 847 of the full data set: "name", "id" in the annotation files, and "trainId", the model's.
ADE20K_SEM_SEG_FULL_CATEGORIES = [{**entry, "trainId": index} for index, entry in enumerate(read_table("ade20k_full"))]

# The 66 labels of version 1.2, the last of them void: "name", "readable", "color", "instances" and "evaluate".
MAPILLARY_VISTAS_SEM_SEG_CATEGORIES = read_table("mapillary_vistas_v1.2")
