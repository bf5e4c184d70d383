"""Mistakes in what is queued, and in gradients that can't be evaluated, over native."""

from tests.mutations.mutation import Mutation, mistakes

FAILED = ("tests/optim/test_failed_gradients.py",)

MUTATIONS = [
    # -- gradients that can't be evaluated
    *mistakes(
        "comm/chain.py",
        ("tests/comm/test_native.py", *FAILED),
        [
            ("self._error = self._error or error", "pass"),
            ("            self._settle_streams()\n", ""),
            (
                'if array.size and not self._tracing and self._backend != "nccl":',
                "if False:",
            ),
        ],
    ),
    *mistakes(
        "optim/gradient_averaging.py",
        FAILED,
        [
            ("        reduction.replace_gradients(zeros)\n", ""),
            ("problem=problem or earlier_problem(world)", "problem=problem"),
        ],
    ),
    # -- what a rank does while others have its header
    *mistakes(
        "optim/gradient_averaging.py",
        ("tests/optim/test_gradient_averaging.py", *FAILED),
        [
            ("traced = device.may_be_tracing() and not device", "traced = not device"),
            ("            errors.append(error)\n", "            pass\n"),
        ],
    ),
    Mutation(
        "comm/mpi.py",
        "        request = self._comm.Iallgather(words, gathered)\n",
        "        if meanwhile:\n            meanwhile()\n"
        "        request = self._comm.Iallgather(words, gathered)\n",
        ("tests/optim/test_gradient_averaging.py",),
        (2,),
    ),
]
