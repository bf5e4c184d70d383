"""The parts of mlx-lm that are used, with replacements for the time of a call.

Tested with mlx-lm 0.32.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType

from ...launcher import environment

TESTED = "0.32.2"
_FEATURES = ("prompt_feature", "text_feature", "completion_feature", "chat_feature")
_REMEDY = f"pip install mlx-lm=={TESTED}"

try:
    import mlx_lm
except ImportError as error:
    raise ImportError(f"this needs mlx-lm: {error}. {_REMEDY}") from error

_FOUND = f"mlx-lm {mlx_lm.__version__} was found, {TESTED} was tested"

try:
    from mlx_lm import lora
    from mlx_lm.cli_ui import TrainUI, rprint
    from mlx_lm.tuner.trainer import (
        TrainingArgs,
        default_loss,
        evaluate,
        grad_checkpoint,
        iterate_batches,
    )
    from mlx_lm.utils import maybe_set_recommended_wired_limit
except ImportError as error:
    raise ImportError(f"{error}: {_FOUND}. {_REMEDY}") from error

__all__ = [
    "SECTIONS",
    "TrainUI",
    "TrainingArgs",
    "default_loss",
    "evaluate",
    "fitting_output",
    "grad_checkpoint",
    "iterate_batches",
    "known_options",
    "lora",
    "maybe_set_recommended_wired_limit",
    "replaced",
    "rprint",
    "size_in_bytes",
]

# Names in sections of the YAML file.
SECTIONS = {
    "lora_parameters": ("rank", "dropout", "scale", "keys"),
    "lr_schedule": ("name", "arguments", "warmup", "warmup_init"),
    "optimizer_config": tuple(lora.CONFIG_DEFAULTS["optimizer_config"]),
    "hf_dataset": (
        *("path", "config", "train_split", "valid_split", "test_split", "mask_prompt"),
        *_FEATURES,
    ),
}


def known_options() -> set[str]:
    """Return all names that mlx-lm's YAML file may have: defaults, flags and others."""
    flags = vars(lora.build_parser().parse_args([]))
    return {*lora.CONFIG_DEFAULTS, *flags, "hf_dataset", *_FEATURES}


def size_in_bytes(text: str) -> int:
    """Return a size such as 4GB as mlx-lm's flag reads it, in bytes."""
    options = lora.build_parser().parse_args([f"--clear-cache-threshold={text}"])
    return int(options.clear_cache_threshold)


def fitting_output() -> AbstractContextManager[None]:
    """While in it, mlx-lm draws no progress bar where the output is no terminal.

    A rank always writes to a terminal of mpirun's, of which its output is copied.
    """
    is_terminal = environment.get(environment.TERMINAL) == "1"
    if is_terminal or not environment.started_by_mpirun():
        return nullcontext()
    return environment.temporary({"TTY_INTERACTIVE": "0"})  # of rich


@contextmanager
def replaced(module: ModuleType, **values: object) -> Iterator[None]:
    """While in it, names of a module of mlx-lm have other values.

    Raises:
        ImportError: the module has no such name.
    """
    missing = [name for name in values if not hasattr(module, name)]
    if missing:
        raise ImportError(
            f"{module.__name__} has no {missing[0]}, which mlxdist replaces: {_FOUND}. "
            + _REMEDY
        )
    before = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
