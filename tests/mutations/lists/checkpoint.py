"""Mistakes in saving durably, in choosing a checkpoint, and in loading all of it."""

from tests.mutations.mutation import Mutation

ASYNC_SAVE = ("tests/checkpoint/test_async_save.py",)
BLOCK_FILE = ("tests/checkpoint/test_block_file.py",)
FLUSHES = (
    "tests/checkpoint/test_durability.py"
    "::test_save_flushes_each_file_and_folder_in_order",
)
LOAD = ("tests/checkpoint/test_load.py",)
LOCK = ("tests/checkpoint/test_lock.py",)
MANIFEST = ("tests/checkpoint/test_manifest.py",)
PARTITION = ("tests/checkpoint/test_partition.py",)
SAVE = ("tests/checkpoint/test_save.py",)
RESHARDED = (
    "tests/checkpoint/test_api.py::test_load_on_any_number_of_ranks_and_shard_mode_gives_the_same_bits",
)
KEPT = ("tests/checkpoint/test_api.py::test_save_keeps_the_newest_and_updates_latest",)
MODEL = (
    "tests/checkpoint/test_api.py::test_load_without_an_optimizer_loads_the_model",
)
SAMPLER = (
    "tests/checkpoint/test_api.py::test_load_resumes_the_sampler_on_another_number_of_ranks",
)
NEW_KEYS = (
    "tests/checkpoint/test_api.py::test_load_gives_new_ranks_random_keys_of_their_own",
)
KEYS = (
    "tests/checkpoint/test_api.py::test_load_restores_extra_counters_and_random_keys",
)
ARGUMENTS = (
    "tests/checkpoint/test_load.py::test_load_of_other_arguments_on_one_rank_is_refused",
)
SERIALS = (
    "tests/checkpoint/test_save.py::test_save_has_a_serial_above_those_that_any_rank_sees",
)
SWEPT = (
    "tests/checkpoint/test_leftovers.py::test_save_removes_what_killed_saves_left_and_nothing_else",
)
FAILED = ("tests/checkpoint/test_leftovers.py::test_save_that_fails_leaves_nothing",)
CHANGED = (
    "tests/checkpoint/test_hostile.py"
    "::test_load_of_a_file_that_changes_meanwhile_changes_nothing",
)
DIRECTORY = ("tests/checkpoint/test_directory.py",)

MUTATIONS = [
    # Which rank writes what
    Mutation(
        "checkpoint/partition.py",
        "for rank in whole[:1] or by_rank:",
        "for rank in by_rank:",
        PARTITION,
    ),
    Mutation(
        "checkpoint/partition.py",
        "min(array.size, start + room)",
        "start + room",
        PARTITION,
    ),
    Mutation(
        "checkpoint/partition.py", "-p.array.item_size", "p.array.item_size", PARTITION
    ),
    Mutation("checkpoint/partition.py", "level - used[filled]", "level", PARTITION),
    Mutation(
        "checkpoint/partition.py",
        "if len(by_checksum) > 1:",
        "if len(by_checksum) > 2:",
        SAVE,
        (2,),
    ),
    # Saves
    Mutation(
        "checkpoint/save.py",
        "max(report.serial for",
        "min(report.serial for",
        SERIALS,
        (2,),
    ),
    Mutation("checkpoint/save.py", "sums[name]:08x", "0:08x", SAVE, (2,)),
    Mutation("checkpoint/save.py", "reports[0].token", "report.token", SAVE, (2,)),
    Mutation(
        "checkpoint/save.py", " : stop * array.item_size]", " :]", RESHARDED, (2,)
    ),
    Mutation("checkpoint/save_request.py", "keep {self.keep}, ", "", SAVE, (2,)),
    Mutation("checkpoint/commit.py", "flush_folder(self._folder)", "pass", FLUSHES),
    Mutation("checkpoint/commit.py", "self._undo()", "pass", FAILED, (2,)),
    Mutation("checkpoint/block_file.py", "flush(self._file)", "pass", FLUSHES),
    Mutation("checkpoint/durable.py", "        flush(file)", "        pass", FLUSHES),
    Mutation(
        "checkpoint/durable.py",
        "    flush_folder(path.parent)",
        "    pass",
        FLUSHES,
    ),
    Mutation(
        "checkpoint/directory.py", "if kept < keep:", "if kept <= keep:", KEPT, (1,)
    ),
    Mutation(
        "checkpoint/directory.py",
        "range(self.oldest, self.newest.serial)",
        "range(self.newest.serial)",
        DIRECTORY,
        (1,),
    ),
    Mutation(
        "checkpoint/directory.py",
        "return save.serial + 1",
        "return save.serial",
        KEPT,
        (1,),
    ),
    Mutation("checkpoint/directory.py", " and name != current", "", MODEL, (1,)),
    Mutation(
        "checkpoint/directory.py",
        "_TEMPORARY.fullmatch(name)",
        '"saving" in name',
        SWEPT,
        (1,),
    ),
    Mutation(
        "checkpoint/async_save.py", "self._thread.join()", "pass", ASYNC_SAVE, (2,)
    ),
    Mutation(
        "checkpoint/lock.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        LOCK,
    ),
    Mutation("checkpoint/lock.py", "if _is_same(file, path):", "if file:", LOCK),
    Mutation("checkpoint/lock.py", "if self._path in _paths:", "if False:", LOCK),
    # The choice of a checkpoint
    Mutation(
        "checkpoint/manifest_check.py",
        "sha256 == digest(content)",
        "sha256 is not None",
        MANIFEST,
    ),
    Mutation(
        "checkpoint/manifest_check.py",
        "if end != array.size:",
        "if end > array.size:",
        MANIFEST,
    ),
    Mutation("checkpoint/manifest_check.py", "if end > start:", "if False:", MANIFEST),
    Mutation(
        "checkpoint/manifest_check.py",
        "if end > files[file].nbytes:",
        "if False:",
        MANIFEST,
    ),
    Mutation(
        "checkpoint/manifest_check.py",
        "if piece.start != end:",
        "if piece.start > end:",
        MANIFEST,
    ),
    Mutation(
        "checkpoint/directory.py",
        "if manifest.step != save.step:",
        "if False:",
        LOAD,
        (1,),
    ),
    # Loads
    Mutation(
        "checkpoint/reader.py",
        "for t in (turn, turn + 1)",
        "for t in (turn, turn)",
        LOAD,
        (2,),
    ),
    Mutation(
        "checkpoint/reader.py",
        "low, high = max(piece.start, start)",
        "low, high = piece.start",
        RESHARDED,
        (2,),
    ),
    Mutation(
        "checkpoint/reader.py", "piece.offset + first", "piece.offset", RESHARDED, (2,)
    ),
    Mutation(
        "checkpoint/block_file.py",
        "status.st_size, status.st_mtime_ns",
        "status.st_size, 0",
        BLOCK_FILE,
    ),
    Mutation(
        "checkpoint/state_targets.py",
        "(part.start, part.stop) if",
        "(0, part.stop - part.start) if",
        RESHARDED,
        (2,),
    ),
    Mutation(
        "checkpoint/target.py",
        "return None if found == wanted else",
        "return None if saved else",
        LOAD,
        (2,),
    ),
    Mutation(
        "checkpoint/reader.py", "self._readers.check_unchanged()", "pass", CHANGED, (2,)
    ),
    Mutation(
        "checkpoint/load.py",
        "extra = on_all_ranks(all_gather, failure, finish)",
        "extra = finish()",
        CHANGED,
        (2,),
    ),
    Mutation(
        "checkpoint/load.py",
        "sampler.load_state_dict(manifest.sampler)",
        "pass",
        SAMPLER,
        (2,),
    ),
    Mutation("checkpoint/load.py", 'f"step {request.step}"', '"step"', ARGUMENTS, (2,)),
    Mutation(
        "checkpoint/load.py",
        'f"missing_ok {request.missing_ok}"',
        '"missing_ok"',
        ARGUMENTS,
        (2,),
    ),
    Mutation(
        "checkpoint/user_data.py",
        "if rank < len(keys):",
        "if rank <= len(keys):",
        NEW_KEYS,
        (3,),
    ),
    Mutation("checkpoint/user_data.py", "keys[rank]", "keys[0]", KEYS, (2,)),
    Mutation(
        "checkpoint/user_data.py",
        "(high << 32) | low",
        "(low << 32) | high",
        KEYS,
        (1,),
    ),
]
