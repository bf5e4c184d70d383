"""Mistakes in the phases of a step: agreement, norm, scale, end, counts."""

from tests.mutations.mutation import mistakes

CHECKS = ("tests/optim/test_step_checks.py", "tests/optim/test_hyperparameters.py")
ACCUMULATION = ("tests/optim/test_accumulation.py",)
NORM = (
    "tests/optim/test_grad_norm.py",
    "tests/optim/test_optimizer_matches_mlx.py",
    "tests/optim/test_fused_step.py",
)
SCALE = ("tests/optim/test_loss_scale.py",)
FAILED = (
    "tests/optim/test_failed_step.py",
    "tests/optim/test_failed_gradients.py",
    "tests/optim/test_interrupted_step.py",
)

MUTATIONS = [
    # -- what the ranks compare before a step
    *mistakes(
        "optim/step_checks.py",
        CHECKS,
        [
            ("or steps % self.check_every:", "or (steps + 1) % self.check_every:"),
            ("arrays |= leaves_of(self.inner.optimizer.state)", "pass"),
            ("lines += self.inner.hyperparameters.changes()", "pass"),
            ("lines += [*self.inner.scalar_lines(), *", "lines += [*"),
            (
                "{counted(steps, 'step')} done\", *self._checksums",
                'done", *self._checksums',
            ),
        ],
    ),
    *mistakes(
        "optim/step_checks.py",
        (
            "tests/optim/mlx_contract/test_partial_gradients.py",
            "tests/optim/test_step_checks.py",
        ),
        [
            ("scalar_lines(), *missing_lines(self.plan, batch)]", "scalar_lines()]"),
            ("if not math.fsum(every) + elsewhere:", "if False:"),
        ],
    ),
    *mistakes(
        "optim/step_checks.py",
        ACCUMULATION,
        [
            (
                "problem = micro.problem_with(batch.weight, world.size) or problem",
                "pass",
            ),
            (
                "return micro.weight_with(batch.weight), problem",
                "return batch.weight, problem",
            ),
            ('lines.append(f"{micro.count} micro-batches before")', "pass"),
        ],
    ),
    *mistakes(
        "optim/step_checks.py",
        ("tests/optim/mlx_contract/test_one_rank.py",),
        [
            (
                "weight == 0 and not (batch.gradients and micro.weight_elsewhere)",
                "False",
            )
        ],
        (1,),
    ),
    *mistakes(
        "optim/batch.py",
        ("tests/optim/test_step_checks.py", "tests/optim/test_optimizer.py"),
        [
            (
                "if shape != entry.shape or array.dtype != dtype_of(entry.dtype):",
                "if shape != entry.shape:",
            ),
            (
                "if shape != entry.shape or array.dtype",
                "if len(shape) != len(entry.shape) or array.dtype",
            ),
            ("    if unknown:\n", "    if unknown > 1:\n"),
        ],
    ),
    *mistakes(
        "optim/batch.py",
        ("tests/optim/mlx_contract/test_partial_gradients.py",),
        [("[entry for entry in plan.entries if entry.path not in gradients]", "[]")],
    ),
    # -- micro-batches
    *mistakes(
        "optim/accumulation.py",
        ACCUMULATION,
        [
            (
                "        finally:\n",
                "        except GeneratorExit:\n            raise\n        else:\n",
            ),
            ("self._no_sync_depth -= 1", "pass"),
            ("self._no_sync_depth -= 1", "self._no_sync_depth = 0"),
            ("self.count + 1 < self.every", "self.count < self.every"),
            ("        self.problem = None\n", ""),
            ("if weight == 0:  # a batch", "if False:  # a batch"),
            ("return array if weight == 1 else array * weight", "return array"),
            (
                "_weighted(gradients, weight), weight)",
                "_weighted(gradients, weight), 1.0)",
            ),
            ("sums, left.weight + right.weight)", "sums, left.weight)"),
            ('mx.float64 if dtype == "float64" else mx.float32', "mx.float32"),
        ],
    ),
    *mistakes(
        "optim/accumulation.py",
        ("tests/optim/test_reproducible.py",),
        [
            ("count & (count - 1) == 0", "count % 2 == 0"),
            ("nodes[-1].level == nodes[-2].level", "True"),
        ],
        (2,),
    ),
    # -- norm, clipping, gradients that are not finite
    *mistakes(
        "optim/grad_norm.py",
        NORM,
        [
            ("mx.minimum(max_norm", "mx.maximum(max_norm"),
            ("(norm + 1e-6)", "norm"),
            (
                "if self.wire.plan.sharded or squares is not None:",
                "if self.wire.plan.sharded:",
            ),
            (
                "if self.wire.plan.sharded or squares is not None:",
                "if squares is not None:",
            ),
            ("peak = float(np.max([", "peak = float(np.min(["),
            ("return peak * mx.sqrt(", "return mx.sqrt("),
            ("return Norm(norm, math.isfinite(float(norm)))", "return Norm(norm)"),
        ],
    ),
    *mistakes(
        "optim/grad_norm.py",
        ("tests/optim/test_grad_norm.py",),
        [("array.astype(mx.float32).square().sum()", "array.square().sum()")],
        (1,),
    ),
    *mistakes(
        "optim/grad_norm.py",
        ("tests/optim/test_fused_step.py",),
        [("if float(bound) < _FAR_FROM_OVERFLOW:", "if True:")],
    ),
    *mistakes(
        "optim/grad_norm.py",
        ("tests/optim/test_pipeline.py",),
        [
            (
                "            squares = self.wire.comm.sum_scalar(squares)",
                "            pass",
            )
        ],
    ),
    *mistakes(
        "optim/grad_norm.py",
        ("tests/optim/test_grad_norm.py",),
        [("norm = np.float32(math.sqrt(sum(roots)))", "norm = np.float32(sum(roots))")],
    ),
    # -- the loss scale
    *mistakes(
        "optim/loss_scale.py",
        SCALE,
        [
            ("min(self._exponent + 1, _MAX_EXPONENT)", "self._exponent + 1"),
            ("self._exponent - 1, 0\n", "self._exponent - 1, self._steps\n"),
            ("if self._exponent == 0:", "if False:"),
            ('counters.get("loss_scale_good", 0)', "0"),
            ("if self._steps % GROWS_AFTER == 0:", "if self._steps > GROWS_AFTER:"),
        ],
    ),
    # -- a step
    *mistakes(
        "optim/step.py",
        (*SCALE, "tests/optim/test_grad_norm.py"),
        [
            ("            self.scale.loss_scale.stepped()", "            pass"),
            ("self.counts.skipped += 1", "pass"),
            ("            return False\n", "            pass\n"),
            (
                "if not self._options.skip_nonfinite:",
                "if self._options.skip_nonfinite:",
            ),
            ("            self._skip_or_raise(attempt, norm)\n", "            pass\n"),
        ],
    ),
    *mistakes(
        "optim/gradient_scale.py",
        (*SCALE, "tests/optim/test_grad_norm.py"),
        [
            (
                "scale = mx.array(1 / self.loss_scale.value)",
                "scale = mx.array(self.loss_scale.value)",
            ),
            ("value = None if value is None else value * scale", "pass"),
            ("scale = clip if scale is None else clip * scale", "scale = clip"),
            ("self.norm = None if self._max_norm is None else norm.value", "pass"),
        ],
    ),
    *mistakes(
        "optim/gradient_scale.py",
        ("tests/optim/test_pipeline.py",),
        [("self.norm = None if norm.is_traced else value", "self.norm = value")],
    ),
    *mistakes(
        "optim/step.py",
        FAILED,
        [
            ("self.counts.steps += 1", "pass"),
            ("self._inner.restore_scalars(scalars)", "pass"),
            ("batch.problem = self.counts.torn or batch.problem", "pass"),
            ("if self.counts.torn is None:", "if True:"),
            ("self.counts.refuse_broken()", "pass"),
            ("share_after_errors(self.resumable_state())", "pass"),
            ("        self.counts.ended = None", "        pass"),
        ],
    ),
    *mistakes(
        "optim/step.py",
        ("tests/optim/test_buffers.py", "tests/optim/test_pipeline.py", *ACCUMULATION),
        [
            ("self.weight = weights.local", "pass"),
            (
                "problem = batch_problem(plan, batch) or missing_problem(plan, batch)",
                "problem = None",
            ),
        ],
    ),
    *mistakes(
        "optim/step.py",
        ACCUMULATION,
        [
            ("sums[path] = array / of_sums.total", "pass"),
        ],
        (1,),
    ),
    # -- a step that an error ends
    *mistakes(
        "optim/attempt.py",
        FAILED,
        [
            ("if index not in self._gather.started:", "if True:"),
            ("is_undone and not self.has_handed_on", "is_undone"),
            ("self._shard is None or self._shard.undo()", "True"),
            ("        counts.broken = None", "        pass"),
            ("            if index not in self._taken:\n", "            if True:\n"),
        ],
    ),
    *mistakes(
        "optim/attempt.py",
        ("tests/optim/test_lazy_state.py", "tests/optim/test_pipeline.py"),
        [("self._run.evaluate(shard.unpublished())", "pass")],
    ),
    *mistakes(
        "optim/rollback.py",
        FAILED,
        [
            ("signal.signal(signal.SIGINT, handler)", "pass"),
            ("        if pressed == 1:\n", "        if False:\n"),
        ],
    ),
    *mistakes(
        "optim/rollback.py",
        ("tests/optim/test_rollback.py",),
        [("            state.clear()\n", "")],
        (),
    ),
    # -- buffers
    *mistakes(
        "optim/buffers.py",
        ("tests/optim/test_buffers.py",),
        [
            ("self._world.mean(averaged, weight=weight)", "self._world.mean(averaged)"),
            ("synced[path].astype(buffers[path].dtype)", "synced[path]"),
            ("np.bitwise_or.reduce(gathered", "np.bitwise_and.reduce(gathered"),
            ("self._world.broadcast(others)", "others"),
            ('if self.mode == "mean" and mx', "if mx"),
            ("mx.issubdtype(buffers[path].dtype, mx.inexact)", "True"),
        ],
    ),
]
