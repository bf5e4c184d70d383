"""What the tests of mlx-lm's command share."""

import sys

import pytest
import yaml


@pytest.fixture
def config(world, shared_folder):
    """Options for a training of the tiny model; its files are in the shared folder."""
    from examples.tiny_mlx_lm import write_data, write_model

    if world.is_root:
        write_model(shared_folder / "model", width=16, layers=1)
        write_data(shared_folder / "data", rows=24)
    world.barrier()
    return {
        "model": str(shared_folder / "model"),
        "data": str(shared_folder / "data"),
        "adapter_path": str(shared_folder / "adapters"),
        "train": True,
        "batch_size": 12,
        "iters": 3,
        "num_layers": 1,
        "val_batches": 1,
        "steps_per_eval": 2,
        "steps_per_report": 1,
        "learning_rate": 1e-3,
        # What mlx-lm's own example of a file has besides.
        "optimizer": "adamw",
        "optimizer_config": {"adamw": {"betas": [0.9, 0.98], "weight_decay": 0.05}},
        "lora_parameters": {
            "keys": ["self_attn.q_proj", "self_attn.v_proj"],
            **{"rank": 8, "scale": 20.0, "dropout": 0.0},
        },
        "lr_schedule": {
            **{"name": "cosine_decay", "warmup": 2, "warmup_init": 1e-7},
            "arguments": [1e-3, 10, 1e-7],
        },
        "resume_adapter_file": None,
        "report_to": None,
        "trust_remote_code": True,
        "clear_cache_threshold": "1GB",
    }


@pytest.fixture
def lora(world, shared_folder, monkeypatch):
    """Call the command with a YAML file and flags."""
    from mlxdist.integrations.mlx_lm import command

    def run(config, *flags):
        path = shared_folder / "config.yaml"
        text = config if isinstance(config, str) else yaml.safe_dump(config)
        if world.is_root:
            path.write_text(text)
        world.barrier()
        monkeypatch.setattr(sys, "argv", ["x", "lora", "--config", str(path), *flags])
        command.main()

    return run
