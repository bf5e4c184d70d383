"""Mistakes in a rank's own update: kernels, copies of weights, hyperparameters."""

from tests.mutations.mutation import Mutation, mistakes

FUSED = ("tests/optim/test_fused_step.py", "tests/optim/test_local_update.py")
COPIES = ("tests/optim/test_masters.py", "tests/optim/test_ema.py")
CHANGES = ("tests/optim/test_hyperparameters.py", "tests/optim/test_optimizer.py")

MUTATIONS = [
    # -- state in 8 bits
    *mistakes(
        "arrays/blockwise.py",
        ("tests/arrays/test_blockwise.py",),
        [
            ("mx.maximum(codes, mx.array(1, mx.uint8))", "codes"),
            ("is_zero = largest < SMALLEST", "is_zero = largest < 0"),
            ("else mx.sqrt(blocks))", "else blocks)"),
            ("scaled = scaled * mx.sign(blocks)", "pass"),
            ("values = values * mx.abs(values)", "values = mx.square(values)"),
            ("* (1 / 256) + LEAST_LIMITS", "* (1 / 255) + LEAST_LIMITS"),
            ('{"signed": 128 + 1 / 512,', '{"signed": 129,'),
            ('"root": 1 / 512}', '"root": 1}'),
            ("* mx.array(_STEPS, mx.uint32)", "* mx.array(1, mx.uint32)"),
            ("mx.array(_MOMENTS * number, mx.uint32)", "mx.array(0, mx.uint32)"),
            ("mx.array(_BLOCKS, mx.uint32)", "mx.array(2**24, mx.uint32)"),
            ("mx.array(_BLOCKS, mx.uint32)", "mx.array(0, mx.uint32)"),
            ("np.arange(BLOCK) * _PLACES", "np.arange(BLOCK) * 0"),
            ("np.arange(start // BLOCK, stop // BLOCK)", "np.arange(stop // BLOCK)"),
        ],
        (),
    ),
    *mistakes(
        "arrays/host_blocks.py",
        ("tests/arrays/test_host_blocks.py",),
        [
            ("bits = roots.view(np.uint32)", "bits = roots.view(np.int32)"),
            ("if is_zero.any():", "if is_zero.all():"),
            ("_copy_sign(wide[part], roots, other)", "pass"),
            ("np.bitwise_xor(out, 128, out=out)", "pass"),
            ("np.maximum(out, _ONES[: len(out)], out=out)", "pass"),
            (
                "np.take(_LIMITS[kind], rows[part]",
                "np.take(_LIMITS[kind], rows[:len(rows[part])]",
            ),
            ("_repeated(factors[part])", "_repeated(factors[:len(out)])"),
            ("np.abs(out, out=scratch[: len(out)])", "out"),
        ],
        (),
    ),
    *mistakes(
        "optim/quantized_step.py",
        ("tests/optim/test_quantized_step.py",),
        [
            ("mx.float32 if moments and dtype.size < mx.float32.size", "dtype if True"),
            ("phases_at(step, blocks, number)", "None"),
            ("phases_at(step, blocks, number)", "phases_at(step, blocks, 0)"),
            ("rows_at(step.item(), numbers, number)", "rows_at(0, numbers, number)"),
            ("current = parameter.astype(gradient.dtype)", "pass"),
            ("{**state.get(key[0], {}), key[1]: array}", "{key[1]: array}"),
        ],
        (1, 2),
    ),
    *mistakes(
        "optim/update_work.py",
        ("tests/optim/test_inner_optimizer.py",),
        [
            (
                "m, n = sorted((entry.shape[0], math.prod(entry.shape[1:])))",
                "m, n = entry.shape[0], math.prod(entry.shape[1:])",
            )
        ],
    ),
    # -- compiled kernels
    *mistakes(
        "optim/local_update.py",
        (*FUSED, "tests/optim/test_lazy_state.py", "tests/optim/test_overrides.py"),
        [
            ("len(bucket) > 1 and len(groups) == 1", "len(bucket) > 1"),
            ("            leaf.tick()", "            pass"),
            ("        self._draws.refuse()\n", ""),
        ],
    ),
    *mistakes(
        "optim/piece_step.py",
        (*FUSED, *CHANGES, "tests/optim/test_grad_norm.py"),
        [
            (
                "gradient if scale is None else (gradient * scale).astype(dtype)",
                "gradient",
            ),
            ("            state.update(arrays)\n", "            pass\n"),
            (
                "self._leaf._state, dict(scalars)",
                "self._leaf._state, dict(self._leaf._state)",
            ),
            ("            self._leaf._state = saved\n", "            pass\n"),
        ],
    ),
    *mistakes(
        "optim/fused_step.py",
        (*FUSED, *CHANGES),
        [
            ("start = self._bucket[0].start", "start = 0"),
            ("put_leaves(states, key, views)", "pass"),
            (
                "if views is not None and all(map(is_, parts, views)):",
                "if views is not None:",
            ),
        ],
    ),
    *mistakes(
        "optim/piece_step.py",
        ("tests/optim/test_overrides.py",),
        [
            ("return stepped.astype(parameter.dtype)", "return stepped"),
            ("tuple(stepped.shape) == shape", "stepped.size == parameter.size"),
        ],
    ),
    *mistakes(
        "optim/piece_step.py",
        ("tests/optim/test_quantized_step.py",),
        [
            (
                "spans = [(piece.start, piece.stop)]",
                "spans = [(0, piece.stop - piece.start)]",
            )
        ],
        (2,),
    ),
    *mistakes(
        "optim/fused_step.py",
        ("tests/optim/test_quantized_step.py",),
        [("(piece.start, piece.stop) for", "(0, piece.stop - piece.start) for")],
        (2,),
    ),
    *mistakes(
        "optim/part_step.py",
        ("tests/optim/test_quantized_step.py",),
        [("            first = self._piece.start\n", "            first = 0\n")],
        (2,),
    ),
    # -- large tensors in parts
    Mutation(
        "optim/part_step.py",
        "is_copy = address(mean.arrays[0]) is None",
        "is_copy = True",
        ("tests/optim/test_part_step.py",),
        (1,),
        equivalent="InPlace copies what others refer to, which costs time alone",
    ),
    *mistakes(
        "optim/part_step.py",
        ("tests/optim/test_part_step.py",),
        [
            ("        self.is_incomplete = True\n", ""),
            (
                "outputs[key].write(start, leaf_at(part.state, key).reshape(-1))",
                "pass",
            ),
            ("_layout(waiting[0].state) != _layout(state):", "False:"),
        ],
    ),
    *mistakes(
        "optim/attempt.py",
        ("tests/optim/test_part_step.py",),
        [
            ("mean.is_reusable or self.gradients.is_reusable", "mean.is_reusable"),
            ("self._take(index), self._slot(index)", "self._take(index), None"),
        ],
        (1,),
    ),
    *mistakes(
        "optim/local_update.py",
        ("tests/optim/test_part_step.py",),
        [("is_whole = not (wire.plan.sharded and wire.has_peers)", "is_whole = True")],
        (2,),
    ),
    *mistakes(
        "arrays/in_place.py",
        ("tests/optim/test_part_step.py",),
        [
            ("        del array, flat\n", ""),
            ("[start : start + part.size] = raw", "[: part.size] = raw"),
        ],
    ),
    # -- master and EMA weights
    *mistakes(
        "optim/masters.py",
        COPIES,
        [
            ("mx.where(is_rounded, kept, ", "mx.where(True, kept, "),
            ("return float24.join(parameter, kept)", "return kept"),
            (
                "split(stepped, parameter.dtype, step)",
                "split(stepped, parameter.dtype)",
            ),
            ("new, state[CORRECTION] = float24", "new, _ = float24"),
            (
                "state[KEY] = stepped\n",
                "state[KEY] = stepped.astype(parameter.dtype)\n",
            ),
            ("dtype.size < self.dtype.size:", "dtype.size > self.dtype.size:"),
        ],
    ),
    *mistakes(
        "optim/ema.py",
        COPIES,
        [
            (
                "average + (1 - self.decay) * (wide - average)",
                "average + self.decay * (wide - average)",
            ),
            ("return parameter.astype(_dtype(parameter))", "return parameter"),
            (
                "        finally:\n",
                "        except GeneratorExit:\n            raise\n        else:\n",
            ),
            ("agree(comm, call, wire.plan.fingerprint, problem=problem)", "pass"),
            ("self._in_place = True", "pass"),
        ],
    ),
    *mistakes(
        "optim/weight_copies.py",
        COPIES,
        [
            ("current = self.masters.current(parameter, state)", "current = parameter"),
        ],
    ),
    # -- hyperparameters and the wrapped optimizer
    *mistakes(
        "optim/hyperparameters.py",
        CHANGES,
        [
            ("not all(map(_same, self._now, self._before))", "False"),
            ("type(one) in _NUMBERS and one == other", "type(one) in _NUMBERS"),
            (
                "len(one) == len(other) and all(map(_same, one, other))",
                "len(one) == len(other)",
            ),
            ('if name[0] != "_" or name == "_schedulers"', 'if name[0] != "_"'),
        ],
    ),
    *mistakes(
        "optim/inner_optimizer.py",
        (
            "tests/optim/test_inner_optimizer.py",
            *CHANGES,
            "tests/optim/test_optimizer_equivalence.py",
        ),
        [
            (
                "self.is_known and not hyperparameters.has_arrays(self.optimizer)",
                "self.is_known",
            ),
            (
                "known = type(self.optimizer) in ELEMENTWISE",
                "known = isinstance(self.optimizer, tuple(ELEMENTWISE))",
            ),
            ("all(wants(name, array)", "any(wants(name, array)"),
            (
                "for leaf in self.leaves if _takes",
                "for leaf in self.leaves[::-1] if _takes",
            ),
            ('"elements" if self.is_elementwise else "tensors"', '"elements"'),
            ("works[e.path] / all_work + e.nbytes / all_bytes", "e.nbytes / all_bytes"),
            ('optimizer.state["step"] = optimizer.step + 1', "pass"),
        ],
    ),
    *mistakes(
        "optim/partial_update.py",
        ("tests/optim/mlx_contract/test_partial_gradients.py",),
        [
            (
                "self._put_back([path for path in paths if path in self._before])",
                "pass",
            ),
            ("gradients |= _zeros(missing)", "pass"),
            ("dict(values) for path, values", "values for path, values"),
        ],
    ),
    *mistakes(
        "optim/pipeline.py",
        (*CHANGES, "tests/optim/test_pipeline.py"),
        [
            ("self._use_kernels(compiled=False)", "pass"),
            (
                "if comm.adds_in_rank_order else options.reduce_dtype",
                "if comm.adds_in_rank_order else None",
            ),
            ("norm = grad_norm.TracedNorm(wire)", "pass"),
        ],
    ),
    *mistakes(
        "optim/pipeline.py",
        ("tests/optim/mlx_contract/test_compile.py",),
        [("update = FromRoot(update, wire)", "pass")],
    ),
]
