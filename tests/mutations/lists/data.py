"""Mistakes in which rank trains on which examples, and where a sampler resumes."""

from tests.mutations.mutation import Mutation

SAMPLER = ("tests/test_data.py",)
LOOPS = ("tests/test_data_loops.py",)

MUTATIONS = [
    Mutation("data.py", " + min(rank, extra)", "", SAMPLER),
    Mutation("data.py", "(rank < extra)", "(rank <= extra)", SAMPLER),
    Mutation("data.py", "self.seed, epoch) if", "self.seed, 0) if", SAMPLER),
    Mutation("data.py", "self.seed, epoch) if", "epoch, self.seed) if", SAMPLER),
    Mutation("data.py", "SeedSequence(seed,", "SeedSequence(0,", SAMPLER),
    Mutation("data.py", "if stop < self.n else (epoch + 1, 0)", "", LOOPS),
    Mutation(
        "data.py",
        "self.batch_size * self.size, self.n)",
        "self.batch_size, self.n)",
        SAMPLER,
    ),
    Mutation("data.py", "-(-(self.n - self.position)", "-(-self.n", SAMPLER),
    Mutation(
        "data.py",
        "-(-(self.n - self.position) // (self.batch_size * self.size))",
        "(self.n - self.position) // (self.batch_size * self.size)",
        SAMPLER,
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
