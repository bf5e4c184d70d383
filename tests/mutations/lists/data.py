"""Mistakes in which rank trains on which examples, and where a sampler resumes."""

from tests.mutations.mutation import Mutation

SAMPLER = ("tests/test_data.py",)
LOOPS = ("tests/test_data_loops.py",)
WEIGHTS = ("tests/test_training_loop.py",)

MUTATIONS = [
    Mutation("data.py", " + min(rank, extra)", "", SAMPLER),
    Mutation("data.py", "(rank < extra)", "(rank <= extra)", SAMPLER),
    Mutation("data.py", "self.seed, epoch) if", "self.seed, 0) if", SAMPLER),
    Mutation("data.py", "self.seed, epoch) if", "epoch, self.seed) if", SAMPLER),
    Mutation("data.py", "SeedSequence(seed,", "SeedSequence(0,", SAMPLER),
    Mutation("data.py", "if stop < self.n else (epoch + 1, 0)", "", LOOPS),
    Mutation(
        "data.py",
        "stop = start + self.batch_size * self.size",
        "stop = start + self.batch_size",
        SAMPLER,
    ),
    Mutation("data.py", "if self.n - stop < self.size:", "if self.n < stop:", SAMPLER),
    Mutation("data.py", "left = self.n - self.position", "left = self.n", SAMPLER),
    Mutation("data.py", "(left - self.size) //", "left //", SAMPLER),
    Mutation("data.py", "max(full, int(left > 0))", "full", SAMPLER),
    Mutation(
        "data.py",
        "(stop - start) % self.size > 0",
        "(stop - start) % self.size == 0",
        WEIGHTS,
        (2,),
    ),
    Mutation(
        "optim/step_checks.py",
        "if weight is None and world.has_uneven_shares",
        "if world.has_uneven_shares",
        WEIGHTS,
        (2,),
    ),
    Mutation(
        "data.py",
        "if this_pass != self._passes:",
        "if this_pass > self._passes:",
        SAMPLER,
    ),
    Mutation("data.py", '("n", "seed", "shuffle"):', '("n", "seed"):', SAMPLER),
    Mutation("data.py", "0 < position == self.n", "position == self.n", LOOPS),
    Mutation("data.py", "if position > self.n:", "if position > self.n + 1:", SAMPLER),
    Mutation("data.py", "if self.n == 0:", "if self.n < 0:", LOOPS),
    Mutation(
        "data.py", "if self.rank >= self.size:", "if self.rank > self.size:", SAMPLER
    ),
    Mutation(
        "data.py", "            start = stop", "            start = stop + 1", SAMPLER
    ),
]
