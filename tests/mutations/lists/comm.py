"""Mistakes in sums over the ranks, in exchanges of bytes, and in agreements."""

from tests.mutations.mutation import Mutation, mistakes

SUMS = ("tests/comm/test_exchange.py", "tests/comm/test_collectives.py")
AGREEMENT = ("tests/comm/test_agreement.py", "tests/optim/test_step_checks.py")
NATIVE = ("tests/comm/test_collectives.py", "tests/comm/test_native.py")

FAILED = ("tests/optim/test_failed_gradients.py",)
ATTEMPT = ("tests/optim/test_attempt.py",)

MUTATIONS = [
    # -- the weighted mean
    *mistakes(
        "comm/reduction.py",
        ("tests/comm/test_reduction.py", *SUMS),
        [
            ("if weights.total != 1:", "if weights.total > 1:"),
            (
                "zip(parts, weights.every, strict=True)",
                "zip(parts, weights.every[::-1])",
            ),
            ("        if weight\n", ""),
            ("_divide(out, weights.total)", "_divide(out, len(parts))"),
            ("return cls(every[rank], tuple", "return cls(every[0], tuple"),
            ("return numbers if weight == 1 else", "return numbers if weight else"),
            ("return flat if weights.local == 1 else", "return flat if 1 else"),
            ("return mx.zeros_like(flat)", "return flat * 0"),
            (
                "mx.where(local == 0, mx.array(0, flat.dtype), flat * local)",
                "flat * local",
            ),
        ],
    ),
    *mistakes(
        "comm/reduction.py",
        ("tests/comm/test_reduction.py", *SUMS),
        [
            ("for term in terms[2:]:", "for term in terms[3:]:"),
            ("float(np.dot(out, out))", "float(np.dot(terms[0], terms[0]))"),
            ("mantissa == 0.5 and", "mantissa < 1 and"),
        ],
        (3,),
    ),
    *mistakes(
        "comm/reduction.py",
        ("tests/optim/test_accumulation.py",),
        [("pairwise_sum(every) if pairwise else sum(every)", "float(len(every))")],
    ),
    *mistakes(
        "comm/reduction.py",
        ("tests/optim/test_reproducible.py",),
        [("terms = [pairwise_sum(terms)]", "pass")],
        (4,),
    ),
    # -- exchanges over MPI
    *mistakes(
        "comm/exchange.py",
        SUMS,
        [
            ("min(first + start, end), min(", "first + start, min("),
            ("longest = bucket.chunk", "longest = bucket.chunk - 1"),
            ("                self._pop(0)\n", "                pass\n"),
            ("while self._nbytes > MOST_FREE", "while False"),
            ("self._nbytes -= buffer.nbytes", "pass"),
            (
                "self._source[self.start + arrived.start :",
                "self._source[arrived.start :",
            ),
            ("range(0, size, BLOCK)", "range(0, size - 1, BLOCK)"),
            ("stop = min(start + BLOCK, size)", "stop = start + BLOCK"),
            ("self.squares += combine(", "self.squares = combine("),
            ("self.squares = self._reduction.squares", "pass"),
            ("self._sums = np.empty(", "mean = mean.copy(); self._sums = np.empty("),
            ("encode(sums, self._dtype, out=out)", "encode(out, self._dtype, out=out)"),
            ("is None or self._reduction.complete", "is None or True"),
        ],
        (3,),
    ),
    *mistakes(
        "comm/exchange.py",
        ("tests/optim/test_grad_norm.py",),
        [('np.errstate(over="ignore", invalid="ignore")', "np.errstate()")],
    ),
    *mistakes(
        "comm/mpi.py",
        ("tests/comm/test_collectives.py", "tests/optim/test_describe.py"),
        [
            ("array = mx.zeros(array.shape, array.dtype)", "pass"),
            (
                "self._comm.Bcast(source[start:stop], root)",
                "self._comm.Bcast(source[start:stop], 0)",
            ),
            ("source.nbytes if self.rank == root else 0", "source.nbytes"),
            ("mx.array(sum(every.tolist())", "mx.array(max(every.tolist())"),
            ("self.traffic.add(0, collectives=2)", "self.traffic.add(0)"),
            ("self.traffic.add(part.nbytes, collectives=0)", "pass"),
        ],
    ),
    *mistakes(
        "comm/mpi.py",
        ("tests/comm/test_exchange.py",),
        [("dtype if dtype.size > mx.float32.size else", "dtype if False else")],
    ),
    *mistakes(
        "comm/progress.py",
        ("tests/comm/test_progress.py", "tests/comm/test_collectives.py"),
        [
            ("if self._error is not None:", "if False:"),
            ("self._error = error  # raised", "pass  # raised"),
            ("self._incomplete.append(exchange)", "pass"),
            ("while self._incomplete and not self._is_awaited:", "while False:"),
            ("if len(self._incomplete) == 1:", "if False:"),
            ("if not exchange.ready:", "if False:"),
            ("if self._is_closed:", "if False:"),
        ],
    ),
    # -- collectives of MLX
    *mistakes(
        "comm/native.py",
        NATIVE,
        [
            ("(self._chain.evaluate(flat))[root]", "(self._chain.evaluate(flat))[0]"),
            (
                "then(lambda sum: sum[start:stop])",
                "then(lambda sum: sum[: stop - start])",
            ),
            (
                "_padded(local, 0, bucket.chunk - local.size)",
                "_padded(local, bucket.chunk - local.size, 0)",
            ),
            (
                "_padded(bits, start, bucket.size - stop)",
                "_padded(bits, bucket.size - stop, start)",
            ),
            ("bits = mx.view(", "bits, _ = local, mx.view("),
            (
                "then(lambda sum: sum / weights.total)",
                "then(lambda sum: sum / self.size)",
            ),
            ("chunk[: stop - start] / weights.total", "chunk / weights.total"),
            ("(span, 0, bucket.chunk", "(span, bucket.chunk - span.size, bucket.chunk"),
            ("row[: stop - start] for row", "row for row"),
            ("padded <= whole", "padded <= 9 * whole"),
        ],
        (3,),
    ),
    *mistakes(
        "comm/chain.py",
        NATIVE,
        [
            ("self.queue(result, token)", "pass"),
            ("rows[:, start:stop].reshape", "rows[:, : stop - start].reshape"),
            ("_limit(flat) // self._size", "_limit(flat)"),
        ],
        (3,),
    ),
    *mistakes(
        "comm/streams.py",
        NATIVE,
        [("mx.new_stream(mx.cpu) if has_own else None", "None")],
        (3,),
    ),
    *mistakes(
        "comm/native.py",
        ("tests/optim/test_reproducible.py",),
        [("pairwise_sum(list(rows))", "sum(rows)")],
        (4,),
    ),
    *mistakes(
        "comm/chain.py",
        ("tests/optim/test_gradient_averaging.py", "tests/optim/test_pipeline.py"),
        [
            ("return mx.depends([array], [self._token])[0]", "return array"),
            ("self._token, self._tracing = outside, False", "self._tracing = False"),
        ],
    ),
    # -- what travels, bucket by bucket
    *mistakes(
        "comm/window.py",
        ("tests/comm/test_wire.py", "tests/optim/test_pipeline.py"),
        [
            ("return self._nbytes > self._most and", "return False and"),
            ("self._nbytes -= self._buckets[index].nbytes", "pass"),
            ("self._pending.popleft()", "self._pending.pop()"),
        ],
    ),
    *mistakes(
        "comm/traced_wire.py",
        ("tests/comm/test_traced_wire.py",),
        [
            ("weights.summed(self.comm.sum_scalar,", "weights.summed(lambda x: x,"),
            ("len(first) > 1 and is_float32 and is_whole", "False"),
        ],
    ),
    *mistakes(
        "comm/gather.py",
        ("tests/comm/test_wire.py",),
        [("[self._pop() for _ in range(len(self._window))]", "[]")],
    ),
    *mistakes(
        "comm/wire.py",
        (
            "tests/optim/test_gradient_averaging.py",
            "tests/optim/test_masters.py",
            "tests/optim/test_optimizer_matches_mlx.py",
            "tests/optim/test_describe.py",
        ),
        [
            ('dtype is None or bucket.dtype == "float64"', "dtype is None"),
            ("sum(self._squares) if", "max(self._squares) if"),
            (
                "2 if comm.adds_in_rank_order else 1",
                "1",
            ),
            (
                "_unless_wide(self._mean_dtype, bucket) or bucket.dtype)\n",
                "bucket.dtype)\n",
            ),
        ],
    ),
    # -- agreements
    *mistakes(
        "comm/agreement.py",
        AGREEMENT,
        [
            (" and not headers[:, 2].any()", ""),
            ("problem or device.pending_error()", "problem"),
            (
                "(headers[:, :2] == headers[0, :2])",
                "(headers[:, :1] == headers[0, :1])",
            ),
            (
                "(headers[:, :2] == headers[0, :2])",
                "(headers[:, 1:2] == headers[0, 1:2])",
            ),
            ("1e-9 <= float(weight) <= 1e15", "float(weight) <= 1e15"),
            ("1e-9 <= float(weight) <= 1e15", "1e-9 <= float(weight)"),
            (
                "float_of(int(word)) for word in headers[:, 3]",
                "number for _ in headers",
            ),
            (
                "for text, who in groups.items()",
                "for text, who in [*groups.items()][1:]",
            ),
        ],
    ),
    *mistakes(
        "comm/agreement.py",
        ("tests/optim/test_init_again.py",),
        [("problem=None if cause is None else error_text(cause)", "problem=None")],
    ),
    *mistakes(
        "comm/flight_recorder.py",
        ("tests/comm/test_flight_recorder.py", "tests/world/test_postmortem.py"),
        [
            ("status.sequence += self._numbers_collectives", "status.sequence += 1"),
            ("vars(error).setdefault(_STATUS", "vars(error).get(_STATUS"),
            (
                "self.name, self.call, self.step, self.elements,",
                "self.name, self.call, self.elements, self.nbytes,",
            ),
            ("if status.call:", "if False:"),
        ],
        (),
    ),
    Mutation(
        "optim/attempt.py",
        "        self._run.wire.comm.settle()\n",
        "",
        ATTEMPT,
    ),
    Mutation(
        "optim/attempt.py", "self._means.replace_gradients(zeros)", "pass", ATTEMPT
    ),
    Mutation(
        "optim/grad_norm.py",
        "mx.eval(local)  # raises",
        "pass  # raises",
        ATTEMPT,
    ),
    Mutation(
        "optim/identical_gradients.py",
        "agree_on_success(world.control, _CALL, partial(mx.eval, gradients))",
        "mx.eval(gradients)",
        FAILED,
        (2,),
    ),
]
