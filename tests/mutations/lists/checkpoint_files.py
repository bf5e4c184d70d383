"""Mistakes in writing and reading the files of a checkpoint."""

from tests.mutations.mutation import Mutation

BLOCK_FILE = ("tests/checkpoint/test_block_file.py",)
DURABLE = ("tests/checkpoint/test_durable.py",)
PARTITION = ("tests/checkpoint/test_partition.py",)
SAFETENSORS = ("tests/checkpoint/test_safetensors.py",)

MUTATIONS = [
    Mutation(
        "checkpoint/block_file.py",
        "os.ftruncate(self._file, self.nbytes)",
        "pass",
        BLOCK_FILE,
    ),
    Mutation(
        "checkpoint/block_file.py",
        "BLOCK - self._filled, rest.nbytes",
        "BLOCK, rest.nbytes",
        BLOCK_FILE,
    ),
    Mutation(
        "checkpoint/block_file.py",
        "self.nbytes += self._filled",
        "self.nbytes = self._filled",
        BLOCK_FILE,
    ),
    Mutation(
        "checkpoint/block_file.py",
        "hexdigest() != self._sha256[index]",
        "hexdigest() not in self._sha256",
        BLOCK_FILE,
    ),
    Mutation(
        "checkpoint/block_file.py",
        "[low - start : high - start]",
        "[: high - low]",
        BLOCK_FILE,
    ),
    Mutation(
        "checkpoint/block_file.py",
        "min((index + 1) * self._block, self.nbytes)",
        "(index + 1) * self._block",
        BLOCK_FILE,
    ),
    Mutation("checkpoint/block_file.py", "self._error = error", "pass", BLOCK_FILE),
    Mutation("checkpoint/durable.py", "os.O_NOFOLLOW | ", "", DURABLE),
    Mutation("checkpoint/durable.py", " | os.O_NONBLOCK", "", DURABLE),
    Mutation(
        "checkpoint/durable.py",
        "data[written:], offset + written",
        "data[written:], offset",
        DURABLE,
    ),
    Mutation(
        "checkpoint/durable.py", "temporary.unlink(missing_ok=True)", "pass", DURABLE
    ),
    Mutation(
        "checkpoint/safetensors.py",
        'text += b" " * (-len(text) % 8)',
        "pass",
        PARTITION,
    ),
    Mutation("checkpoint/safetensors.py", "end += nbytes", "end = nbytes", SAFETENSORS),
]
