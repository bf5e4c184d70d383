"""Planning in pure integers: parameters, buckets, and which rank owns what."""

from .buckets import DEFAULT_BUCKET_SIZE, make_buckets
from .entries import ITEM_SIZES, Entry, fingerprint, in_order, split_counts
from .paths import KeyPath
from .sharding import Bucket, Piece, Plan, Strategy, make_plan

__all__ = [
    "DEFAULT_BUCKET_SIZE",
    "ITEM_SIZES",
    "Bucket",
    "Entry",
    "KeyPath",
    "Piece",
    "Plan",
    "Strategy",
    "fingerprint",
    "in_order",
    "make_buckets",
    "make_plan",
    "split_counts",
]
