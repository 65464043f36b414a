"""Hugging Face's ``Mask2FormerForUniversalSegmentation``: their models as ours, and ours as theirs."""

from mask2former.inference.huggingface.reading import download_repository, read_folder
from mask2former.inference.huggingface.writing import write_folder

__all__ = ["download_repository", "read_folder", "write_folder"]
