"""`python -m mlxdist.integrations.mlx_lm lora`, called on the ranks of the test."""

import contextlib
import json
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm import generate, load
from mlx_lm import lora as upstream

from mlxdist.integrations.mlx_lm import command

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("kind", ["lora", pytest.param("full", marks=pytest.mark.long)])
def test_command_saves_an_adapter_that_mlx_lm_generates_with(
    world, lora, config, shared_folder, kind
):
    names = vars(upstream).copy()
    lora({**config, "fine_tune_type": kind, "shard": True}, "--test")
    assert {name: vars(upstream)[name] for name in names} == names
    world.barrier()
    model, tokenizer = load(config["model"], adapter_path=config["adapter_path"])
    assert generate(model, tokenizer, "1+1=", max_tokens=2) is not None
    saved = json.loads((shared_folder / "adapters/adapter_config.json").read_text())
    assert (saved["fine_tune_type"], saved["trust_remote_code"]) == (kind, True)
    assert saved["clear_cache_threshold"] == 10**9


def test_command_resumes_from_its_checkpoint(world, lora, config, shared_folder):
    config |= {"iters": 5, "steps_per_eval": 5}  # its first report is of training
    lora(config, "--checkpoint-every", "3")
    weights = mx.load(str(shared_folder / "adapters/adapters.safetensors"))
    lora(config, "--resume", "--no-compiled", "--shard", "none")
    world.barrier()
    lines = (shared_folder / "adapters/mlxdist/metrics.jsonl").read_text().splitlines()
    reports = [json.loads(line) for line in lines]
    assert [r["step"] for r in reports if "train_loss" in r] == [1, 2, 3, 4, 5]
    again = mx.load(str(shared_folder / "adapters/adapters.safetensors"))
    assert all(mx.allclose(weights[name], again[name], atol=1e-5) for name in weights)


@pytest.mark.parametrize(
    ("config_of", "message"),
    [
        (lambda c: {**c, "shard": "rows"}, "shard: found rows, wanted auto"),
        (lambda c: {**c, "batch_size": 0}, "batch_size=0 is the rows of all ranks"),
        (lambda c: {**c, "batch_size": 120}, "the train dataset has 24 rows"),
        (lambda c: {**c, "data": c["model"]}, "train.jsonl, which --train needs"),
        (lambda c: {**c, "train": False, "resume": True}, "add --train"),
        (lambda c: {**c, "resume": True}, "there is no checkpoint in"),
        (lambda _: "a: [", "while parsing a flow node"),
        (lambda _: "- a", "the file of --config has no lines such as"),
        (lambda c: {**c, "batch-size": 4}, "no option batch-size: did you mean batch"),
        (lambda c: {**c, "note": 4}, "config.yaml: there is no option note: remove it"),
        (
            lambda c: {**c, "lora_parameters": {"rank": 4, "scala": 2.0}},
            "config.yaml: there is no option scala: did you mean scale?",
        ),
        (lambda c: {**c, "checkpoint_every": "9"}, "found '9', wanted a whole number"),
        (lambda c: {**c, "mask_prompt": "no"}, "found 'no', wanted true or false"),
        (lambda c: {**c, "clear_cache_threshold": "4 apples"}, "wanted a whole number"),
        (lambda c: {**c, "train": False}, "nothing to do: add --train, --test"),
        (
            lambda c: {**c, "prompt_feature": "text", "completion_feature": "text"},
            "a row that can't be tokenized: {'text': ",
        ),
        (lambda c: {**c, "num_layers": 9}, "the model only has 1 layers"),
        (lambda c: {**c, "adapter_path": c["data"] + "/train.jsonl"}, "File exists"),
        (lambda c: {**c, "optimizer": "muon", "shard": "elements"}, "need them whole"),
        (
            lambda c: {**c, "train": False, "test": True},
            "The adapter path does not exist",
        ),
    ],
    ids=[
        *("shard", "rows", "few rows", "no data", "resume", "no checkpoint", "YAML"),
        *("list", "dashes", "unknown", "section", "text", "quotes", "size"),
        *("nothing", "template", "layers", "path", "Muon", "untrained"),
    ],
)
def test_command_with_a_mistake_ends_all_ranks_with_one_message(
    world, lora, config, capsys, config_of, message
):
    with pytest.raises(SystemExit) as exit_info:
        lora(config_of(config))
    assert exit_info.value.code == 2
    printed = capsys.readouterr().err
    assert (message in printed) == world.is_root


@pytest.mark.mpi(min_size=2)
def test_command_with_a_mistake_on_one_rank_ends_all_ranks(
    world, lora, config, capsys, monkeypatch
):
    if world.is_root:
        missing = Path("/none/file")
        monkeypatch.setattr(upstream, "save_config", lambda *_: missing.read_text())
    with pytest.raises(SystemExit) as exit_info:
        lora(config)
    assert exit_info.value.code == 2
    assert ("rank 0: FileNotFoundError" in capsys.readouterr().err) == world.is_root


def test_command_other_than_lora_is_refused(world, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "generate"])
    with pytest.raises(SystemExit):
        command.main()
    assert ("found generate, wanted lora" in capsys.readouterr().err) == world.is_root


def test_command_help_has_the_options_of_both(world, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "lora", "--help"])
    with contextlib.suppress(SystemExit):
        command.main()
    printed = capsys.readouterr().out
    assert ("--grad-checkpoint" in printed) == world.is_root
    assert ("--checkpoint-every" in printed) == world.is_root
