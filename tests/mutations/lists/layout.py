"""Mistakes in the plan of buckets and owners, and in paths and their order."""

from tests.mutations.mutation import Mutation

BUCKETS = ("tests/layout/test_buckets.py",)
ENTRIES = ("tests/layout/test_entries.py",)
MOVES = ("tests/layout/test_moves.py",)
PATHS = ("tests/layout/test_paths.py",)
SHARDING = ("tests/layout/test_sharding.py",)
TRAFFIC = ("tests/layout/test_traffic.py",)

MUTATIONS = [
    Mutation("layout/buckets.py", "in reversed(indices)", "in indices", BUCKETS),
    Mutation("layout/buckets.py", "filled[entry.dtype] = 0", "pass", BUCKETS),
    Mutation(
        "layout/buckets.py", "min(bucket_size, ALONE_FROM)", "bucket_size", BUCKETS
    ),
    Mutation(
        "layout/buckets.py",
        "filled[entry.dtype] >= bucket_size",
        "filled[entry.dtype] > bucket_size",
        BUCKETS,
    ),
    Mutation(
        "layout/buckets.py",
        "position_of.get(entries[i].path, i)",
        "i",
        BUCKETS,
    ),
    Mutation(
        "layout/buckets.py",
        "setdefault(entry.dtype, [])",
        'setdefault("float32", [])',
        BUCKETS,
    ),
    Mutation(
        "layout/entries.py",
        "first.path.text == second.path.text",
        "first.path == second.path",
        ENTRIES,
    ),
    Mutation("layout/entries.py", "sort_keys=True, ", "", ENTRIES),
    Mutation("layout/entries.py", "max(total, 1)", "total", ENTRIES),
    Mutation(
        "layout/entries.py", "min(start + limit, total)", "start + limit", ENTRIES
    ),
    Mutation(
        "layout/entries.py",
        "sorted(entries, key=lambda entry: entry.path)",
        "entries",
        ENTRIES,
    ),
    Mutation("layout/moves.py", "if low < high", "if low <= high", MOVES),
    Mutation("layout/moves.py", "has.get(rank, (0, 0))", "(0, 0)", MOVES),
    Mutation("layout/moves.py", "min(stop, span[1])", "stop", MOVES),
    Mutation("layout/moves.py", "max(start, span[0])", "start", MOVES),
    Mutation("layout/moves.py", "if missing:", "if False:", MOVES),
    Mutation(
        "layout/paths.py",
        "return 0, int(text), str(type(key))",
        "return 0, 0, text",
        PATHS,
    ),
    Mutation("layout/paths.py", "(?s:|0|", "(?s:|", PATHS),
    Mutation("layout/paths.py", "[0-9]{0,17}", "[0-9]{0,3}", PATHS),
    Mutation(
        "layout/sharding.py",
        "-(-self.size // self.ranks)",
        "self.size // self.ranks",
        SHARDING,
    ),
    Mutation(
        "layout/sharding.py",
        "min((rank + 1) * chunk, self.size)",
        "(rank + 1) * chunk",
        SHARDING,
    ),
    Mutation(
        "layout/sharding.py",
        "bisect_right(self.owners, rank - 1)",
        "bisect_right(self.owners, rank)",
        SHARDING,
    ),
    Mutation("layout/sharding.py", "if owner == rank:", "if owner <= rank:", SHARDING),
    Mutation("layout/sharding.py", "low - start)", "low - begin)", SHARDING),
    Mutation(
        "layout/sharding.py", "min(max(begin, start), stop) - start", "0", SHARDING
    ),
    Mutation("layout/sharding.py", "max(start, begin)", "start", SHARDING),
    Mutation("layout/sharding.py", "cost + costs[index]", "costs[index]", SHARDING),
    Mutation("layout/sharding.py", "(-costs[i], i)", "(costs[i], i)", SHARDING),
    Mutation("layout/sharding.py", "float(e.nbytes)", "1.0", SHARDING),
    Mutation(
        "layout/sharding.py", "[b.owners] if b.block == 1", "[0] if True", SHARDING
    ),
    Mutation("layout/sharding.py", "if b.block == 1 else [b.block]", "", SHARDING),
    Mutation(
        "layout/sharding.py", "start + round_to(cut - start,", "round_to(cut,", SHARDING
    ),
    Mutation(
        "layout/sharding.py", "self.block), stop)", "self.block), self.size)", SHARDING
    ),
    Mutation("layout/sharding.py", "number + multiple // 2", "number", SHARDING),
    Mutation(
        "layout/sharding.py",
        "sorted(group, key=lambda entry: owner_of[entry.path])",
        "group",
        SHARDING,
    ),
    Mutation(
        "layout/traffic.py",
        "bucket.size - (stop - start)",
        "bucket.size",
        TRAFFIC,
    ),
    Mutation(
        "layout/traffic.py",
        "(bucket.ranks - 1) * (stop - start)",
        "bucket.ranks * (stop - start)",
        TRAFFIC,
    ),
    Mutation("layout/traffic.py", "2 * (ranks - 1)", "(ranks - 1)", TRAFFIC),
]
