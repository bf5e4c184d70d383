"""Planning in pure integers: parameters, buckets, and which rank owns what."""

from .buckets import DEFAULT_BUCKET_SIZE, make_buckets
from .entries import ITEM_SIZES, Entry, fingerprint, in_order, path_key, split_counts
from .sharding import Bucket, Piece, Plan, Strategy, make_plan

__all__ = [
    "DEFAULT_BUCKET_SIZE",
    "ITEM_SIZES",
    "Bucket",
    "Entry",
    "Piece",
    "Plan",
    "Strategy",
    "fingerprint",
    "in_order",
    "make_buckets",
    "make_plan",
    "path_key",
    "split_counts",
]
