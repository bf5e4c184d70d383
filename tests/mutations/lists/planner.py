"""Mistakes in the memory of a rank, in the choices by it, and in step times."""

from tests.mutations.mutation import Mutation, mistakes

MEMORY = ("tests/layout/test_memory.py",)
CHOICES = ("tests/planner/test_choices.py",)
TIMES = ("tests/planner/test_time_model.py",)

MUTATIONS = [
    Mutation("layout/memory.py", "if not options.minimize:", "if True:", MEMORY),
    Mutation(
        "layout/memory.py",
        "self.check_finite and plan.ranks > 1 and",
        "self.check_finite and",
        MEMORY,
    ),
    Mutation("layout/memory.py", "(self.minimize or self.overlaps", "(False", MEMORY),
    Mutation("layout/memory.py", "self.accumulate.bit_length()", "1", MEMORY),
    Mutation(
        "layout/memory.py", "if plan.ranks > 1:  # of the", "if False:  #", MEMORY
    ),
    Mutation("layout/memory.py", "// BLOCK * width_of_block", "", MEMORY),
    *mistakes(
        "layout/memory.py",
        MEMORY,
        [
            ("if plan.ranks == 1 or item >", "if item >"),
            ("(plan.sharded and options.rounds", "(options.rounds"),
            ("is_wide = options.state_dtype or", "is_wide ="),
            ("return (1 + (is_streamed and", "return (1 + ("),
            ("return (1 + (not options.keeps", "return (1 + (options.keeps"),
        ],
        ranks=(),
    ),
    Mutation("layout/memory.py", "most + max(sizes)", "most", MEMORY),
    Mutation(
        "layout/state_blocks.py",
        "entry.size % BLOCK == 0",
        "True",
        ("tests/layout/test_state_blocks.py",),
    ),
    Mutation("planner/choices.py", "key=_cost", "key=lambda c: 0", CHOICES),
    Mutation("planner/choices.py", "_FREE.issuperset(self.changes)", "True", CHOICES),
    Mutation("planner/choices.py", "order[0:2] = order[1::-1]", "pass", CHOICES),
    Mutation(
        "planner/time_model.py",
        "share * times * means",
        "share * means",
        TIMES,
    ),
    Mutation("planner/time_model.py", "e.size * max(4, ", "e.size * (", TIMES),
    *mistakes(
        "planner/measured_link.py",
        ("tests/planner/test_measured_link.py",),
        [
            ('min(_number(pair, "bandwidth"', 'max(_number(pair, "bandwidth"'),
            ('max(_number(pair, "latency"', 'min(_number(pair, "latency"'),
            ("* (1 - 1 / buckets)", ""),
            ("(seconds - transfer) / nbytes", "seconds / nbytes"),
            ("if not least <= number <= most:", "if number < least:"),
            ("2 * (ranks - 1) / ranks * _number(", "2 * _number("),
        ],
        ranks=(),
    ),
    *mistakes(
        "planner/memory_model.py",
        ("tests/planner/test_memory_model.py", "tests/planner/test_choices.py"),
        [
            ("key = (ranks, strategy, block)", "key = (ranks, strategy, 1)"),
            ("        process=PROCESS_BYTES,", "        process=0,"),
            ("frozen=model.frozen_bytes", "frozen=0"),
            ("elements - len(entries) * rows * columns", "0"),
        ],
        ranks=(),
    ),
]
