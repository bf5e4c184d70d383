"""Training of a chaos run: sums are exact, so undisturbed runs have the same bits.

Arguments: FOLDER FIRST. The folder has the plan, and `fired` for what has struck; FIRST
is the number of the first attempt. Each rank ends with `finished ATTEMPT RANK DIGEST`.
"""

import os
import signal
import sys
import time
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim

import mlxdist
from mlxdist.arrays import digest
from mlxdist.launcher import environment
from tests.chaos.kinds import all_kinds
from tests.chaos.plan import Plan, read_plan

EXAMPLES = 101
SECONDS = 0.04  # of each step, at least


class RankFaults:
    """The faults of this rank, each of which strikes once."""

    def __init__(self, folder: Path, plan: Plan, rank: int, attempt: int):
        self._folder = folder
        self._kinds = all_kinds()
        faults = dict(enumerate(plan.faults)).items()
        self._left = {i: x for i, x in faults if (x.attempt, x.rank) == (attempt, rank)}

    def strike(self, step: int) -> None:
        """Bring about what is due in a step; 0 is before `init()`."""
        for index, fault in list(self._left.items()):
            if fault.step <= step:
                del self._left[index]
                written = self._folder / "fired" / f".{index}"
                written.write_text(str(os.getpid()))
                written.rename(self._folder / "fired" / str(index))
                self._kinds[fault.kind].strike(fault, self._folder)


def make_optimizer(variant: str) -> mlxdist.DistributedOptimizer:
    wrap = mlxdist.DistributedOptimizer
    if variant == "ema":
        inner = optim.SGD(0.01, momentum=0.5)
        return wrap(inner, shard=True, ema_decay=0.9, max_norm=50.0)
    if variant == "masters":
        inner = optim.AdamW(0.01)
        return wrap(inner, shard=True, master_dtype=mx.float32, accumulate=2)
    if variant == "tensors":
        return wrap(optim.Adafactor(0.01), shard="tensors")
    if variant == "native":
        return wrap(optim.AdamW(0.01), transport="native", ema_decay=0.9)
    return wrap(optim.AdamW(0.01), shard=variant == "sharded")


class Training:
    def __init__(self, world: mlxdist.World, folder: Path, plan: Plan):
        self.world, self.folder, self.plan = world, folder, plan
        configuration = plan.configuration
        self.dtype = mx.bfloat16 if configuration.variant == "masters" else mx.float32
        self.micro_batches = 2 if configuration.variant == "masters" else 1
        shapes = {"embedding": (211, 197), "weight": (41, 37), "bias": (13,)}
        self.parameters = {x: mx.zeros(y, self.dtype) for x, y in shapes.items()}
        self.optimizer = make_optimizer(configuration.variant)
        self.optimizer.init(self.parameters)
        self.sampler = mlxdist.ShardedSampler(
            EXAMPLES, world=world, seed=5, batch_size=4
        )
        world.seed(3)  # differs between ranks, and is saved with the checkpoint
        self.step = 0
        self.wants_save = False

    def run(self, faults: RankFaults) -> None:
        self._load()
        batches = self._batches()
        while self.step < self.plan.configuration.steps:
            self.step += 1
            faults.strike(self.step)
            time.sleep(SECONDS)
            for _ in range(self.micro_batches):
                self._update(next(batches))
            wanted = self.world.mean(float(self.wants_save)) > 0
            if wanted or self.step % self.plan.save_every == 0:
                self._save(background=self.plan.background)
            self.wants_save = self.wants_save and not wanted
        self._save(background=False)

    def _batches(self):
        while True:
            yield from self.sampler

    def _update(self, batch: mx.array) -> None:
        """Step with integers that depend on the examples and on the random state."""
        count = len(batch)
        shift = sum(batch.tolist()) % 7 - 3
        gradients = {
            name: (mx.random.randint(-4, 5, array.shape) + shift).astype(self.dtype)
            for name, array in self.parameters.items()
        }
        self.parameters = self.optimizer.apply_gradients(
            gradients, self.parameters, weight=count
        )
        mx.eval(self.parameters)

    def _save(self, *, background: bool) -> None:
        try:
            mlxdist.save_checkpoint(
                self.folder / "saves",
                self.step,
                self.parameters,
                self.optimizer,
                sampler=self.sampler,
                background=background,
            )
        except mlxdist.CheckpointError as error:
            if not self.plan.tolerates:
                raise
            self.world.print("goes on:", error)

    def _load(self) -> None:
        loaded = mlxdist.load_checkpoint(
            self.folder / "saves",
            self.parameters,
            self.optimizer,
            sampler=self.sampler,
            missing_ok=True,
        )
        if loaded:
            self.step = loaded.step
            self.world.print("resumes from", self.step, *loaded.skipped)
        else:
            self._save(background=False)

    def digest(self) -> str:
        """Return the digest of the parameters and of all state, EMA weights too."""
        tree = {"p": self.parameters, "s": self.optimizer.gather_state()}
        return digest(tree).tobytes().hex()


def main() -> None:
    folder, first = Path(sys.argv[1]), int(sys.argv[2])
    plan = read_plan(folder / "plan.json")
    rank, attempt = int(environment.rank()), first + environment.restarts()
    faults = RankFaults(folder, plan, rank, attempt)
    faults.strike(0)
    world = mlxdist.init(timeout=plan.timeout)
    training = Training(world, folder, plan)

    def save_soon(*_: object) -> None:
        training.wants_save = True

    signal.signal(signal.SIGUSR1, save_soon)
    world.barrier()  # no rank reports a step before all have the handler
    training.run(faults)
    print(f"finished {attempt} {rank} {training.digest()}", flush=True)


if __name__ == "__main__":
    main()
