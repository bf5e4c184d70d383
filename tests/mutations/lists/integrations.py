"""Mistakes in the training of mlx-lm's models on N ranks."""

from tests.mutations.mutation import Mutation, mistakes

TRAIN = ("tests/integrations/test_mlx_lm_train.py",)
COMMAND = ("tests/integrations/test_mlx_lm_command.py",)
OPTIONS = ("tests/integrations/test_mlx_lm_options.py",)
FOLDER = "integrations/mlx_lm/"

MUTATIONS = [
    Mutation(FOLDER + "step.py", "weight = tokens", "weight = None", TRAIN, (2,)),
    Mutation(
        FOLDER + "step.py",
        "weight = self._share(tokens) if self._count > 1 else tokens",
        "weight = None",
        TRAIN,
        (2,),
    ),
    Mutation(
        FOLDER + "step.py",
        "weight = self._share(tokens) if self._count > 1 else tokens",
        "weight = tokens",
        TRAIN,
        (2,),
    ),
    Mutation(
        FOLDER + "batches.py",
        "array[world.rank :: world.size]",
        "array[:: world.size]",
        TRAIN,
        (2,),
    ),
    Mutation(FOLDER + "batches.py", "self._state = later", "pass", TRAIN, (1,)),
    Mutation(
        FOLDER + "batches.py",
        "position > skipped:",
        "position >= skipped:",
        TRAIN,
        (1,),
    ),
    Mutation(
        FOLDER + "saved.py",
        'self._window.resume(rows, float(loaded.extra["seconds"]))',
        "pass",
        TRAIN,
        (1,),
    ),
    Mutation(
        FOLDER + "saved.py", "self._model.update(parameters)", "pass", TRAIN, (1,)
    ),
    Mutation(
        FOLDER + "arguments.py",
        "return -(-self.checkpoint_every // count) * count",
        "return self.checkpoint_every",
        TRAIN,
        (1,),
    ),
    Mutation(
        FOLDER + "callbacks.py",
        'int(train_info["iteration"]) - 1',
        'int(train_info["iteration"])',
        COMMAND,
        (1,),
    ),
    Mutation(
        FOLDER + "options.py",
        'args.shard = "auto" if args.shard else "none"',
        "pass",
        COMMAND,
        (1,),
    ),
    Mutation(FOLDER + "sections.py", "if name not in known:", "if 0:", COMMAND, (1,)),
    *mistakes(
        FOLDER + "sections.py",
        OPTIONS,
        [
            ("if missing:", "if 0:"),
            ("if not _is_whole(rank) or rank < 1:", "if not _is_whole(rank):"),
            ("signature.bind(*arguments)", "pass"),
        ],
        (1,),
    ),
    Mutation(
        FOLDER + "command.py",
        "rows.process(rows[0])  # fails where chats have no template",
        "pass",
        COMMAND,
        (1,),
    ),
    *mistakes(
        FOLDER + "data_files.py",
        OPTIONS,
        [
            ('elif is_used and name != "valid":', "elif 0:"),
            ("if wanted and not is_used:", "if 0:"),
            ("if missing:", "if 0:"),
            (
                '        yield f"data: {path} is empty: add rows, or remove it"',
                "        return",
            ),
        ],
        (1,),
    ),
    Mutation(
        FOLDER + "options.py",
        "if type(default) in _KINDS and type(value) is not type(default):",
        "if 0:",
        COMMAND,
        (1,),
    ),
    Mutation(
        FOLDER + "window.py",
        "counted = rows[rows[:, 1] > 0]",
        "counted = np.maximum(rows, [-np.inf, 1])",
        ("tests/integrations/test_mlx_lm_window.py",),
        (1,),
    ),
    Mutation(
        FOLDER + "options.py",
        "if isinstance(args.clear_cache_threshold, str):",
        "if 0:",
        COMMAND,
        (1,),
    ),
    Mutation(
        FOLDER + "arguments.py",
        "if given.get(name, least) < least:",
        "if given.get(name, least) < 0:",
        ("tests/integrations/test_mlx_lm_arguments.py",),
        (1,),
    ),
    Mutation(
        FOLDER + "arguments.py",
        "if not tree_flatten(model.trainable_parameters()):",
        "if 0:",
        ("tests/integrations/test_mlx_lm_arguments.py",),
        (1,),
    ),
    Mutation(
        FOLDER + "command.py",
        "parser.set_defaults(**dict.fromkeys(lora.CONFIG_DEFAULTS))",
        "pass",
        COMMAND,
        (1,),
    ),
    Mutation(
        FOLDER + "step.py",
        "return mx.where(tokens > 0, mean, 0.0), tokens",
        "return mean, tokens",
        TRAIN,
        (2,),
    ),
    Mutation(
        FOLDER + "command.py",
        "self._agreed(prepare)(*arguments)",
        "prepare(*arguments)",
        COMMAND,
        (2,),
    ),
    *mistakes(
        FOLDER + "training.py",
        TRAIN,
        [
            ("is_last=iteration % count == 0", "is_last=True"),
            ("        self._tokens = at.tokens", "        pass"),
            ("range(done + 1, self._args.iters + 1)", "range(1, self._args.iters + 1)"),
            (
                "            parameters = self._world.broadcast(parameters)",
                "            pass",
            ),
            ("or iteration in (1, args.iters)", ""),
            ("        self._batches.leave_random_state()", "        pass"),
            (
                "if iteration % args.steps_per_report == 0 or iteration == args.iters:",
                "if iteration % args.steps_per_report == 0:",
            ),
        ],
    ),
    *mistakes(
        FOLDER + "window.py",
        TRAIN,
        [
            ("summed = self._world.mean(local) * self._world.size", "summed = local"),
            ("            self._local = []", "            pass"),
        ],
    ),
    *mistakes(
        FOLDER + "trainer.py",
        TRAIN,
        [("        kind.__call__ = before", "        pass")],
    ),
]
