"""Mistakes in init, options, and what moves between ranks besides gradients."""

from tests.mutations.mutation import mistakes

COPIES = ("tests/optim/test_masters.py", "tests/optim/test_ema.py")
SETUP = ("tests/optim/test_setup.py", "tests/optim/test_init_again.py")

MUTATIONS = [
    *mistakes(
        "optim/setup.py",
        SETUP,
        [
            ("                *inner.settings(),\n", ""),
            ("                *options.lines(),\n", ""),
            ("                *map(str, entries),\n", ""),
            ("                *state.scalar_names(inner),\n", ""),
            ("f\"mlx {metadata.version('mlx')}\"", '"mlx"'),
            ("elif not world.identical(parameters):", "elif False:"),
            ("share_module(world.control, call, parameters)", "pass"),
            ("        state.share_scalars(inner, comm)\n", ""),
            ("        before.restore(inner)\n", ""),
            ("json.loads(orders[0])", "json.loads(orders[comm.rank])"),
            ("state.reset(inner, old.plan)", "pass"),
            ("if old.plan.entries:", "if False:"),
            (
                "agree_on_success(comm, call, partial(inner.assign, parameters))",
                "inner.assign(parameters)",
            ),
        ],
    ),
    *mistakes(
        "optim/options.py",
        ("tests/optim/test_setup.py",),
        [
            (
                "for name, value in vars(self).items()]",
                f'for name, value in vars(self).items() if name != "{option}"]',
            )
            for option in ("max_norm", "bucket_size", "accumulate", "sync_buffers")
        ],
    ),
    *mistakes(
        "optim/option_checks.py",
        ("tests/optim/test_options.py", "tests/optim/test_pipeline.py"),
        [
            ("0 <= decay < 1)", "0 <= decay <= 1)"),
            ("(_is_number(norm) and norm > 0)", "(_is_number(norm) and norm >= 0)"),
            ("if accumulates or options.sync_buffers:", "if accumulates:"),
        ],
    ),
    *mistakes(
        "optim/options.py",
        ("tests/optim/test_options.py",),
        [("if isinstance(value, np.generic):", "if False:")],
    ),
    *mistakes(
        "optim/loss_scale.py",
        ("tests/optim/test_options.py",),
        [("2.0**-126 <= float(value) < 2.0**127", "0 < float(value)")],
    ),
    *mistakes(
        "optim/options.py",
        ("tests/optim/test_loss_scale.py",),
        [
            (
                "self.max_norm is not None or self.skip_nonfinite or dynamic",
                "self.max_norm is not None or self.skip_nonfinite",
            )
        ],
        (1,),
    ),
    *mistakes(
        "optim/options.py",
        ("tests/optim/test_reproducible.py", *COPIES),
        [
            (
                "if self.reproducible or self.accumulate_sharded or steps_in_float32:",
                "if self.accumulate_sharded or steps_in_float32:",
            )
        ],
        (2,),
    ),
    *mistakes(
        "optim/share_weights.py",
        ("tests/optim/test_share_weights.py", "tests/optim/test_setup.py"),
        [
            (
                "[raw(parameters[path]) for path in same], words=2",
                "[raw(parameters[path])[:BEGINNING] for path in same], words=2",
            ),
            (".all(axis=(0, 2))", ".any(axis=(0, 2))"),
            (
                "comm.broadcast(parameters[path], 0)",
                "comm.broadcast(parameters[path], comm.size - 1)",
            ),
        ],
    ),
    *mistakes(
        "optim/share_state.py",
        ("tests/optim/test_failed_step.py", "tests/optim/test_interrupted_step.py"),
        [
            ("map(int, every[0, 1:])", "map(int, every[-1, 1:])"),
            ("and every[:, 0].any():", "and False:"),
        ],
    ),
    *mistakes(
        "optim/state.py",
        SETUP,
        [
            (
                "write_scalars(inner, json.loads(texts[0]))",
                "write_scalars(inner, json.loads(texts[-1]))",
            ),
            ("state[name] = comm.broadcast(state[name], 0)", "pass"),
        ],
    ),
    *mistakes(
        "optim/state_exchange.py",
        (
            "tests/optim/test_state.py",
            "tests/optim/test_init_again.py",
            "tests/optim/test_state_values.py",
        ),
        [
            ("repr(value) != repr(header.value)", "False"),
            ("span = first + low, first + high", "span = low, high"),
            (
                "array[low - first : high - first]",
                "array[low - first : high - first - 1]",
            ),
            ("PIECE_BYTES // dtype.size", "PIECE_BYTES"),
        ],
        (3,),
    ),
    *mistakes(
        "optim/identical_gradients.py",
        ("tests/optim/test_identical_gradients.py",),
        [
            (
                "for rank, weight in enumerate(weights.every) if weight]",
                "for rank, weight in enumerate(weights.every)]",
            ),
            ("for size in (_SAMPLE, None):", "for size in (_SAMPLE,):"),
            ("return checksum + (is_nonzero << 32)", "return checksum + (1 << 32)"),
        ],
    ),
    *mistakes(
        "optim/gradient_averaging.py",
        ("tests/optim/test_gradient_averaging.py",),
        [
            ("mean.astype(dtypes[entry.path])", "mean"),
            ("weight=weight,", "weight=None,"),
        ],
    ),
    *mistakes(
        "optim/gradient_averaging.py",
        ("tests/optim/test_gradient_averaging.py",),
        [("wire_dtype=mx.float32", "wire_dtype=None")],
        (3,),
    ),
    *mistakes(
        "optim/resumable_state.py",
        ("tests/optim/test_loss_scale.py", "tests/checkpoint/test_api.py"),
        [
            ('self.counts.skipped = counters.get("skipped", 0)', "pass"),
            ("self.loss_scale.restore(counters)", "pass"),
        ],
    ),
]
