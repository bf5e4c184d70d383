"""Mistakes in minimize(), and in sums of micro-batches that are kept as shares."""

from tests.mutations.mutation import Mutation, mistakes

SHARDED = ("tests/optim/test_sharded_accumulation.py",)
MINIMIZE = ("tests/optim/test_minimize.py", "tests/optim/test_minimize_memory.py")

MUTATIONS = [
    *mistakes(
        "optim/step.py",
        SHARDED,
        [("earlier.weight += of_sums.total", "earlier.weight = of_sums.total")],
    ),
    *mistakes(
        "comm/share_sums.py",
        SHARDED,
        [
            ("earlier.pop(0) + array", "array"),
            ("array / self.weight for", "array for"),
        ],
    ),
    Mutation(
        "optim/accumulation.py",
        "if problem is not None and self.problem is None:",
        "if problem is not None:",
        ("tests/optim/test_failed_gradients.py",),
        (2,),
    ),
    *mistakes(
        "optim/accumulation.py",
        SHARDED,
        [
            ("math.inf if self.expects_more else self.shares.weight", "0.0"),
            ("self.sharded and not self.in_no_sync", "self.sharded"),
        ],
    ),
    *mistakes(
        "optim/sharded_accumulation.py",
        SHARDED,
        [
            (
                "reduction.replace_gradients(gradients.use_zeros(wire.plan.entries))",
                "pass",
            ),
            ("    reduction.collect()", "    pass"),
        ],
        (2,),
    ),
    *mistakes(
        "optim/minimize.py",
        MINIMIZE,
        [
            ("return loss * self.loss_scale, value", "return loss, value"),
            ("value if self.loss_scale is None else value[1]", "value"),
        ],
    ),
    *mistakes(
        "optim/minimize.py",
        ("tests/optim/test_minimize_errors.py",),
        [("problem = nothing_trainable(model) or (", "problem = (")],
        (2,),
    ),
    *mistakes(
        "optim/local_update.py",
        ("tests/optim/test_part_step.py",),
        [
            (
                "                step.parts.is_incomplete = False\n",
                "                pass\n",
            )
        ],
        (1,),
    ),
    *mistakes(
        "optim/local_gradients.py",
        MINIMIZE,
        [("dict(unsent) if keeps else {}", "dict(unsent)")],
        (2,),
    ),
]
