"""Mistakes in state that is assigned, gathered or loaded, and in what is wrapped."""

from tests.mutations.mutation import mistakes

ASSIGNED = (
    "tests/optim/test_assigned_state.py",
    "tests/optim/test_assigned_state_refused.py",
)
STATE = ("tests/optim/test_state.py", "tests/optim/test_moments.py")
COMPILE = ("tests/optim/mlx_contract/test_compile.py",)
MEMORY = ("tests/optim/test_rank_memory.py", "tests/optim/test_describe.py")
VALUES = ("tests/optim/test_state_values.py",)

MUTATIONS = [
    *mistakes(
        "optim/full_state.py",
        STATE,
        [
            ("problem = problem or misfit(", "problem or misfit("),
            ("        checksum,\n", "        0,\n"),
            (
                "            if has != want and not is_number(value):",
                "            if False:",
            ),
            ("    state.write_scalars(inner, scalars)", "    pass"),
            ("moments.quantized(cut, kinds)", "cut"),
            ("if is_number(value) or value.shape != entry.shape:", "if False:"),
        ],
    ),
    *mistakes(
        "optim/assigned_state.py",
        ASSIGNED,
        [
            ("        _refuse_copies(comm, parts)", "        pass"),
            ("    if len(set(digests)) > 1 and not root_wins:", "    if False:"),
            ("if not root_wins and any(specs.values()):", "if False:"),
            ("if period < array.size", "if False"),
            ('kind == "shard" else _whole_parts(tree)', "True else {}"),
        ],
    ),
    *mistakes(
        "optim/assigned_state.py",
        ("tests/optim/test_setup.py",),
        [("root_wins=root_wins) and comm.rank:", "root_wins=root_wins):")],
    ),
    *mistakes(
        "optim/assigned_kind.py",
        ASSIGNED,
        [
            ("if plan.sharded and not any(shard):", "if plan.sharded:"),
            ("        r.foreign\n", "        None\n"),
            ("        if assigned.missing:", "        if False:"),
            ("if key in keys and keys[key].shape != shape:", "if False:"),
            ("            if known[path]:", "            if False:"),
        ],
    ),
    *mistakes(
        "optim/managed_state.py",
        ASSIGNED,
        [
            ("            value = as_state(value)", "            pass"),
            ("        elif self.is_pending:", "        elif False:"),
            ("agree(comm, call, fingerprint(lines), lambda: lines)", "pass"),
            ("            self._before.restore(self._inner)", "            pass"),
            ("        put_mark(inner, layout)", "        pass"),
            ('        if action == "load":', "        if False:"),
        ],
    ),
    *mistakes(
        "optim/managed_state.py",
        ("tests/optim/test_init_again.py",),
        [
            (
                "        self._world.optimizer_count, self.name = count, name",
                "        pass",
            )
        ],
    ),
    *mistakes(
        "optim/state_values.py",
        VALUES,
        [
            ("mx.array(value, mx.int64)", "mx.array(value, mx.int32)"),
            ("isinstance(value, bool | int | float) or (", "False or ("),
            ('f"{name} {kind}\\n".encode()', "b''"),
        ],
    ),
    *mistakes(
        "optim/quantized_state.py",
        ("tests/optim/test_quantized_state.py", "tests/optim/test_quantized_step.py"),
        [
            ("return 1 if self.dtype is None else BLOCK", "return 1"),
            ('optim.Adamax: {"m": "signed", "v": "signed"}', "optim.Adamax: {}"),
            ("and not is_changed_object(optimizer)", ""),
            ("if any(map(can_be_quantized, optimizers)) and not whole:", "if True:"),
        ],
    ),
    *mistakes(
        "optim/rank_memory.py",
        MEMORY,
        [
            ("whole - whole // self._plan.ranks", "whole"),
            ("values[key].nbytes - blocks * (BLOCK + 4)", "values[key].nbytes"),
            ('memory["master weights"] * 3 // 4', 'memory["master weights"]'),
            ("if key not in COPIES}", "}"),
        ],
    ),
    *mistakes(
        "optim/describe.py",
        MEMORY,
        [
            (
                "return self.state_bytes_by_rank[self.rank]",
                "return self.state_bytes_by_rank[0]",
            ),
            ('sums = "float32" if accumulates else None', "sums = None"),
            ("max(options.accumulate, 1 + accumulates)", "options.accumulate"),
        ],
    ),
    *mistakes(
        "optim/activations.py",
        MEMORY,
        [
            ("            model.update(before)", "            pass"),
            ("mx.random.seed((high << 32) | low)", "pass"),
            ("mx.get_peak_memory() - in_use", "mx.get_peak_memory()"),
        ],
    ),
    *mistakes(
        "optim/wrapping.py",
        ("tests/optim/test_wrapper.py", "tests/optim/test_overrides.py"),
        [
            (
                'if any(hasattr(leaf, "resumable_state") for leaf in leaves):',
                "if False:",
            ),
            ("if any(_last_wrapping.get(leaf) is not self._id", "if any(False"),
            ("self._multis != _multis(self._optimizer)", "False"),
            ("        if problem is not None:", "        if False:"),
            ("        multis += _multis(part)", "        pass"),
        ],
    ),
    *mistakes(
        "optim/wrapper.py",
        ("tests/optim/test_wrapper.py",),
        [
            (
                "            setattr(self.optimizer, name, value)",
                "            super().__setattr__(name, value)",
            ),
            ("            return getattr(self.options, name)", "            pass"),
            ("        refuse_assignment(name", "        (lambda *a, **k: 0)(name"),
            (
                '_OF_THE_WRAPPED = ("apply_single", "init_single")',
                "_OF_THE_WRAPPED = ()",
            ),
        ],
    ),
    *mistakes(
        "optim/overrides.py",
        ("tests/optim/test_overrides.py",),
        [
            ("return is_own or name in vars(optimizer)", "return is_own"),
            ('.get("elementwise", False)', '.get("elementwise", True)'),
            ('"apply_gradients", "init", "update", "_split_dictionary"', '"update",'),
        ],
    ),
    *mistakes(
        "optim/whole_tree_update.py",
        ("tests/optim/test_overrides.py", "tests/optim/test_failed_step.py"),
        [
            ("        draws.refuse()", "        pass"),
            ("scaled(gradient, dtype, self._scale)", "scaled(gradient, dtype, None)"),
            ("        self._saved.restore()", "        pass"),
            (
                "stepped[path] = fitted(stepped.get(path), parameter,",
                "(lambda *a: 0)(1,",
            ),
        ],
    ),
    *mistakes(
        "optim/traced_setup.py",
        COMPILE,
        [
            ("compiled=False, from_root=True", "compiled=False, from_root=False"),
            (
                "if plan.entries != setup.read_entries(trainable(parameters))[0]:",
                "if False:",
            ),
            ("    if world.size > 1 and world.is_root:", "    if world.size > 1:"),
        ],
    ),
    *mistakes(
        "optim/compilation.py",
        ("tests/optim/test_local_update.py",),
        [
            ("    return not any(failures)", "    return error is None"),
            ("    except RuntimeError as error:", "    except KeyError as error:"),
        ],
    ),
    *mistakes(
        "optim/updates.py",
        (
            "tests/optim/test_optimizer.py",
            "tests/optim/test_buffers.py",
            "tests/optim/test_accumulation.py",
            "tests/optim/test_ema.py",
            "tests/optim/test_overrides.py",
        ),
        [
            ("self.buffers.sync(target.parameters, self._steps.weight)", "pass"),
            (
                "            self._steps.micro_batches.refuse_unapplied()",
                "            pass",
            ),
            ("        self.ema.refuse_in_place(action)", "        pass"),
            ('        self.ema.refuse_in_place("update")', "        pass"),
            ("        self._inner.wrapping.refuse_update()", "        pass"),
            ("if target.leaves and index is not None:", "if False:"),
        ],
    ),
]
