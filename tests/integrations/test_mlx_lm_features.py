"""Features of mlx-lm's command on N ranks: as by mlx-lm's own in one process."""

import json
import re
import types
from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from examples.tiny_mlx_lm import write_model
from mlx_lm import convert
from mlx_lm import lora as upstream
from mlx_lm.tuner import trainer

from mlxdist.integrations.mlx_lm.upstream import replaced
from tests.support.fine_tuning import Reports, whole_batches

pytestmark = [pytest.mark.mpi, pytest.mark.long]
SAME = 1e-5  # of losses: sums over ranks are rounded in another order
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SCHEDULE = {
    **{"name": "cosine_decay", "warmup": 2, "warmup_init": 1e-7},
    "arguments": [1e-3, 10, 1e-7],
}


@pytest.fixture
def prepared(world, shared_folder, config, lora):
    """Options, with a quantized model, rows of chats and an adapter to begin with."""
    model = shared_folder / "wide"
    if world.is_root:
        write_model(model)
        settings = model / "tokenizer_config.json"
        text = {**json.loads(settings.read_text()), "chat_template": TEMPLATE}
        settings.write_text(json.dumps(text))
        convert(str(model), str(shared_folder / "quantized"), True, q_group_size=32)
        write_chats(shared_folder / "chats")
    world.barrier()
    config |= {"model": str(model), "num_layers": 2, "optimizer_config": {"adamw": {}}}
    del config["lora_parameters"], config["lr_schedule"]
    first = str(shared_folder / "first")
    lora({**config, "adapter_path": first, "iters": 1, "learning_rate": 1e-2})
    world.barrier()
    return config


def write_chats(folder):
    folder.mkdir()
    for name in ("train", "valid", "test"):
        with open(folder / f"{name}.jsonl", "w") as file:
            for number in range(24):
                parts = {"user": f"{number}+{number}=", "assistant": str(2 * number)}
                rows = [
                    {"role": k, "content": v * (1 + number % 5)}
                    for k, v in parts.items()
                ]
                file.write(json.dumps({"messages": rows}) + "\n")


def run_alone(config, folder):
    """Run mlx-lm's command in one process. On several ranks each does all of it."""
    reports = Reports()
    mx.disable_compile()  # kernels of a CPU take seconds to compile
    try:
        with (
            replaced(trainer, average_gradients=lambda gradients: gradients),
            replaced(
                upstream,
                train=partial(trainer.train, iterate_batches=whole_batches),
                evaluate=partial(trainer.evaluate, iterate_batches=whole_batches),
                get_reporting_callbacks=lambda *_, **__: reports,
            ),
        ):
            options = {**upstream.CONFIG_DEFAULTS, **config, "adapter_path": folder}
            upstream.run(types.SimpleNamespace(**options))
    finally:
        mx.enable_compile()
    return reports


def printed_test_loss(capsys):
    return re.findall(r"Test loss ([\d.]+)", capsys.readouterr().out)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "quantized"},
        {"fine_tune_type": "dora", "num_layers": -1},
        {"data": "chats", "mask_prompt": True},
        {"lr_schedule": SCHEDULE, "grad_accumulation_steps": 2, "iters": 8},
        {"resume_adapter_file": "first/adapters.safetensors"},
    ],
    ids=["quantized", "DoRA", "masked chats", "schedule", "adapter"],
)
def test_command_gives_the_losses_of_mlx_lm_in_one_process(
    world, lora, prepared, shared_folder, capsys, changes
):
    files = {"model", "data", "resume_adapter_file"} & set(changes)
    changes = {
        **changes,
        **{name: str(shared_folder / changes[name]) for name in files},
    }
    config = {**prepared, **changes, "test": True}
    alone = run_alone(config, str(shared_folder / f"alone-{world.rank}"))
    expected = printed_test_loss(capsys)
    np.random.seed(world.rank)
    mx.random.seed(world.rank)
    lora(config)
    world.barrier()
    assert printed_test_loss(capsys) == expected
    lines = (shared_folder / "adapters/mlxdist/metrics.jsonl").read_text().splitlines()
    reports = [json.loads(line) for line in lines]
    for key, of in (("train_loss", alone.train), ("val_loss", alone.val)):
        found = [report[key] for report in reports if key in report]
        assert found == pytest.approx([i[key] for i in of], rel=0, abs=SAME)
    rates = [r["learning_rate"] for r in reports if "train_loss" in r]
    assert rates == pytest.approx([i["learning_rate"] for i in alone.train])


def test_full_training_of_a_quantized_model_ends_all_ranks_with_one_message(
    world, lora, prepared, shared_folder, capsys
):
    quantized = {"model": str(shared_folder / "quantized"), "fine_tune_type": "full"}
    with pytest.raises(SystemExit) as exit_info:
        lora({**prepared, **quantized})
    assert exit_info.value.code == 2
    assert ("can't be trained" in capsys.readouterr().err) == world.is_root
