"""Checkpoints with seeded damage, some with checksums that are right again.

Each is refused on all ranks, in bounded time and memory, and nothing is changed; or it
is loaded: to the bits that were saved where no checksum was made right again, else to
exactly what the files now say.
"""

import random
import resource
import shutil
import sys
import time
from collections import Counter

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlxdist import CheckpointError, load_checkpoint, save_checkpoint
from mlxdist.arrays.numpy_view import raw
from mlxdist.checkpoint import directory, mlx_files
from tests.support import checkpoint_fuzz as fuzz
from tests.support.checkpoints import Examples, make_run, train

pytestmark = pytest.mark.mpi

MAX_SECONDS = 30  # of a load
MAX_MEMORY = 300 * 2**20  # bytes more than before, at the peak
OPTIONS = {"loss_scale": "dynamic", "ema_decay": 0.5}
EXTRA = {"pair": (1, float("inf")), "table": mx.arange(5), "deep": [{"a": None}]}


class Run:
    """A run that is loaded into, with all that a load replaces."""

    def __init__(self, world):
        self.world = world
        self.tree, self.optimizer = make_run(world, **OPTIONS)
        self.sampler = Examples(world).sampler

    def train(self, steps):
        """Train in place: loads replace the arrays of the tree."""
        self.tree.update(train(self.tree, self.optimizer, self.world, steps))
        next(iter(self.sampler))

    def save(self, folder):
        mx.random.seed(len(str(folder)) + self.world.rank)
        return save_checkpoint(
            folder, 3, self.tree, self.optimizer, EXTRA, sampler=self.sampler
        )

    def state(self):
        return self.optimizer.resumable_state("save")

    def bits(self):
        """Return all that a load may change on this rank."""
        state = self.state()
        arrays = dict(tree_flatten(self.tree))
        arrays |= {f"scalar {at}": array for at, array in state.scalars().items()}
        for path, parts in state.arrays().items():
            arrays |= {f"{path} {key}": part.array for key, part in parts.items()}
        bits = {name: raw(array).tobytes() for name, array in arrays.items()}
        random_key = mx.random.state[0].tolist()
        return bits, state.counters(), random_key, self.sampler.state_dict()


def saved_bits(run, path):
    """Return what `bits` has to be after a load of a folder, by a naive reader."""
    content, arrays = fuzz.read_naively(path)
    bits, counters, _, _ = run.bits()
    bits = dict(bits)
    state = run.state()
    for name in dict(tree_flatten(run.tree)):
        bits[name] = arrays["parameters", name, ""]
    for at, name in state.scalars():
        bits[f"scalar {(at, name)}"] = arrays["scalars", at.rstrip("."), name]
    for key_path, parts in state.arrays().items():
        for key, part in parts.items():
            data = arrays.get(("optimizer", key_path.text, key))
            if data is not None:
                whole = len(data) == part.array.nbytes
                start, stop = (0, part.array.size) if whole else part[2:]
                part_data = fuzz.part_of(data, part.array, start, stop)
                bits[f"{key_path} {key}"] = part_data
    saved = {key: content["counters"].get(key, 0) for key in counters}
    saved["loss_scale_log2"] = content["counters"].get("loss_scale_log2", 16)
    return bits, saved, content["random"][run.world.rank], content["sampler"]


def saved_plain_bits(run, path):
    arrays = fuzz.read_plain_naively(path)
    bits, counters, random_key, position = run.bits()
    bits = dict(bits)
    for name in dict(tree_flatten(run.tree)):
        bits[name] = arrays["model"][name]
    for at, name in run.state().scalars():
        bits[f"scalar {(at, name)}"] = arrays["optimizer"][name]
    for key_path, parts in run.state().arrays().items():
        for key, part in parts.items():
            data = arrays["optimizer"].get(f"{key_path.dotted}.{key}")
            if data is not None:
                part_data = fuzz.part_of(data, part.array, *part[2:])
                bits[f"{key_path} {key}"] = part_data
    counters = {key: 16 if key == "loss_scale_log2" else 0 for key in counters}
    return bits, counters, random_key, position


def check_case(run, folder, path, sampler, wanted):
    """Load a damaged folder; return the outcome, the same on all ranks."""
    before = run.bits()
    start, message = time.monotonic(), ""
    try:
        load_checkpoint(folder, run.tree, run.optimizer, sampler=sampler)
    except CheckpointError as error:
        message = str(error)
    outcome = "refused" if message else "loaded"
    assert len(message) < 10_000
    assert time.monotonic() - start < MAX_SECONDS
    outcomes = run.world.control.all_gather_bytes(outcome.encode())
    assert set(outcomes) == {outcome.encode()}
    assert run.bits() == (before if outcome == "refused" else wanted(path))
    return outcome


def peak():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_cases(world, folder, cases, seed=0):
    """Run so many cases; return how many had each outcome, by kind of damage."""
    base, other = Run(world), Run(world)
    base.train(range(3))
    saved = base.save(folder / "base")
    plain = folder / "plain"
    world.barrier()
    if world.is_root:
        (save,) = directory.list_saves(folder / "base")
        mlx_files.consolidate(folder / "base", save, plain, lambda nbytes: None)
    other.train(range(3, 5))
    other.save(folder / "other")
    run, counts, before = Run(world), Counter(), peak()
    for case in range(cases):
        draw = random.Random(f"{seed} {case}")
        load_checkpoint(folder / "other", run.tree, run.optimizer, sampler=run.sampler)
        name = draw.choices(list(fuzz.DAMAGES), (2, 5, 2))[0]
        damage = draw.choice(fuzz.DAMAGES[name])
        case_folder = folder / f"case-{case}"
        path = case_folder if name == "plain" else case_folder / saved.name
        if world.is_root:
            shutil.copytree(plain if name == "plain" else saved, path)
            damage(draw, path)
        world.barrier()
        wanted, sampler = {
            "unsigned": (lambda _: saved_bits(run, saved), run.sampler),
            "signed": (lambda path: saved_bits(run, path), run.sampler),
            "plain": (lambda path: saved_plain_bits(run, path), None),
        }[name]
        try:
            outcome = check_case(run, case_folder, path, sampler, wanted)
        except BaseException as error:
            error.add_note(f"case {case} of seed {seed}: {damage.__name__}, {name}")
            raise
        counts[f"{name} {damage.__name__}: {outcome}"] += 1
        world.barrier()
        if world.is_root:
            shutil.rmtree(case_folder)
    assert peak() - before < MAX_MEMORY
    return counts


@pytest.mark.filterwarnings("ignore:skipped a checkpoint")
def test_damaged_checkpoint_is_refused_or_loaded_to_the_right_bits(
    world, shared_folder
):
    counts = run_cases(world, shared_folder, 100 if world.size == 1 else 10)
    assert any(name.endswith("loaded") for name in counts)
    assert sum(n for name, n in counts.items() if name.endswith("refused")) > 3


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:skipped a checkpoint")
def test_3000_damaged_checkpoints_are_refused_or_loaded_to_the_right_bits(
    world, shared_folder
):
    counts = run_cases(world, shared_folder, 3000 if world.size == 1 else 300, seed=1)
    if world.is_root:
        print()
        for name, count in sorted(counts.items()):
            print(f"{count:5} {name}")
