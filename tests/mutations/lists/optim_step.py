"""Mistakes in the phases of a step."""

from tests.mutations.mutation import Mutation

MUTATIONS = [
    Mutation(
        "optim/loss_scale.py",
        "min(self._exponent + 1, _MAX_EXPONENT)",
        "self._exponent + 1",
        ("tests/optim/test_loss_scale.py",),
        (1,),
    ),
    Mutation(
        "optim/accumulation.py",
        "self._no_sync_depth -= 1",
        "pass",
        ("tests/optim/test_accumulation.py",),
        (2,),
    ),
]
