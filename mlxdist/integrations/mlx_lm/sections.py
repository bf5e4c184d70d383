"""What is wrong in the sections of mlx-lm's YAML file, found before a model is loaded.

mlx-lm reads most of them when the model and the data are there. Its errors are Python's
then, and name no option.
"""

from __future__ import annotations

import difflib
import inspect
from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping
from numbers import Real
from pathlib import Path

import mlx.optimizers as optim
from mlx.optimizers import schedulers

from .upstream import SECTIONS, known_options, lora

_OPTIMIZERS = {
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "muon": optim.Muon,
    "sgd": optim.SGD,
    "adafactor": optim.Adafactor,
}
_LORA = ("rank", "dropout", "scale")
_GIVEN = {"learning_rate"}  # by another option


def section_problems(args: Namespace, options: Collection[str]) -> Iterator[str]:
    """Yield what is wrong with names and with the sections of a training.

    Args:
        args: of the command, after the YAML file was read.
        options: names of mlxdist's options.
    """
    yield from _unknown_names(vars(args), {*known_options(), *options}, args.config)
    for section, known in SECTIONS.items():
        given = getattr(args, section, None)
        for names in given if isinstance(given, list) else [given]:
            if isinstance(names, Mapping):
                file = f"{section} of {args.config}"
                yield from _unknown_names(names, known, file)
    if not 0 <= args.seed < 2**32:  # of NumPy's random numbers
        yield _wanted("seed", args.seed, "0 to 4294967295")
    if args.train:
        yield from _adapter_problems(args)
        yield from _optimizer_problems(args)
        yield from _schedule_problems(args)


def _unknown_names(
    given: Mapping[str, object], known: Collection[str], file: str
) -> Iterator[str]:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 3)
            hint = f"did you mean {' or '.join(near)}?" if near else "remove it"
            yield f"{file}: there is no option {name}: {hint}"


def _adapter_problems(args: Namespace) -> Iterator[str]:
    first = args.resume_adapter_file
    if first is not None and not Path(first).is_file():
        yield f"resume_adapter_file: there is no file {first}"
    if args.fine_tune_type == "full":
        return
    given = args.lora_parameters
    if not isinstance(given, Mapping):
        yield _wanted("lora_parameters", given, f"names and values: {_defaults()}")
        return
    missing = [name for name in _LORA if given.get(name) is None]
    if missing:
        yield (
            f"lora_parameters has no {' and no '.join(missing)}: the section replaces "
            f"mlx-lm's own, so that it needs all of {_defaults()}"
        )
        return
    rank, dropout, scale = (given[name] for name in _LORA)
    if not _is_whole(rank) or rank < 1:
        yield _wanted("lora_parameters: rank", rank, "a whole number of 1 or more")
    if not _is_number(dropout) or not 0 <= dropout < 1:
        yield _wanted("lora_parameters: dropout", dropout, "a number from 0 to below 1")
    if not _is_number(scale):
        yield _wanted("lora_parameters: scale", scale, "a number")
    keys = given.get("keys")
    if keys is not None and not (isinstance(keys, list) and keys):
        yield _wanted("lora_parameters: keys", keys, "a list of names of layers")


def _optimizer_problems(args: Namespace) -> Iterator[str]:
    name = str(args.optimizer).lower()
    kind = _OPTIMIZERS.get(name)
    if kind is None:
        yield _wanted("optimizer", args.optimizer, ", ".join(_OPTIMIZERS))
        return
    given = args.optimizer_config
    given = given.get(name, {}) if isinstance(given, Mapping) else given
    if not isinstance(given, Mapping):
        yield _wanted(f"optimizer_config: {name}", given, "names and values")
        return
    known = inspect.signature(kind).parameters.keys() - _GIVEN
    yield from _unknown_names(given, known, f"optimizer_config: {name}")
    if not args.lr_schedule and not _is_number(args.learning_rate):
        yield _wanted("learning_rate", args.learning_rate, "a number")


def _schedule_problems(args: Namespace) -> Iterator[str]:
    given = args.lr_schedule
    if not given:
        return
    schedules = [
        name
        for name, value in vars(schedulers).items()
        if inspect.isfunction(value) and name != "join_schedules"
    ]
    if not isinstance(given, Mapping):
        yield _wanted("lr_schedule", given, "name and arguments")
        return
    name, arguments = str(given.get("name")), given.get("arguments")
    if name not in schedules:
        yield _wanted("lr_schedule: name", name, ", ".join(schedules))
        return
    if not (isinstance(arguments, list) and all(map(_is_number, arguments))):
        yield _wanted("lr_schedule: arguments", arguments, "a list of numbers")
        return
    signature = inspect.signature(getattr(schedulers, name))
    try:
        signature.bind(*arguments)
    except TypeError as error:
        names = ", ".join(signature.parameters)
        yield f"lr_schedule: arguments of {name} are {names}: {error}"
    warmup = given.get("warmup") or 0
    if not _is_number(warmup) or 0 != warmup < 1:
        yield _wanted("lr_schedule: warmup", warmup, "a number of steps, or 0 for none")
    if warmup and not _is_number(given.get("warmup_init", 0.0)):
        yield _wanted("lr_schedule: warmup_init", given["warmup_init"], "a number")


def _wanted(name: str, value: object, wanted: str) -> str:
    return f"{name}: found {value!r}, wanted {wanted}"


def _defaults() -> str:
    values = lora.CONFIG_DEFAULTS["lora_parameters"]
    return ", ".join(f"{name}: {values[name]}" for name in _LORA)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
