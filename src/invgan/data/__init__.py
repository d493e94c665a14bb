"""Data: named sets, tables, images, and synthetic samples whose likelihood is known."""

from invgan.data.columns import Column, Columns
from invgan.data.images import Images, pad_images, read_images
from invgan.data.named import Dataset, adbench_tables, load
from invgan.data.synthetic import SyntheticSample, synthetic
from invgan.data.tables import (
    Infer,
    Table,
    mixed_frame,
    plain_frame,
    read_blocks,
    read_data,
    read_labels,
    read_table,
)

__all__ = [
    "Column",
    "Columns",
    "Dataset",
    "Images",
    "Infer",
    "SyntheticSample",
    "Table",
    "adbench_tables",
    "load",
    "mixed_frame",
    "pad_images",
    "plain_frame",
    "read_blocks",
    "read_data",
    "read_images",
    "read_labels",
    "read_table",
    "synthetic",
]
