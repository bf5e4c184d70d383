"""Options of mlx-lm's command, and files of data, that are refused by name."""

import argparse
import json
import types
from importlib.util import find_spec

import pytest
from mlx_lm import lora
from mlx_lm.tuner.datasets import TextDataset

from mlxdist.integrations.mlx_lm.data_files import Rows
from mlxdist.integrations.mlx_lm.options import DEFAULTS, check

pytestmark = pytest.mark.mpi
TEXTS = [json.dumps({"text": str(number)}) for number in range(3)]
LORA = {"rank": 8, "dropout": 0.0, "scale": 20.0}
COSINE = {"name": "cosine_decay", "arguments": [1e-3, 10]}


def options(folder, **changes):
    flags = vars(lora.build_parser().parse_args([]))
    given = {**lora.CONFIG_DEFAULTS, **DEFAULTS, "train": True, "data": str(folder)}
    given |= {"config": "x.yaml", **changes}
    return argparse.Namespace(**{**flags, **given})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n".join(TEXTS) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fine_tune_type": "full", "lora_parameters": None},
        {"lora_parameters": {**LORA, "rank": 1, "keys": ["self_attn.q_proj"]}},
        {"lr_schedule": {**COSINE, "warmup": 2, "warmup_init": 0}},
        {"lr_schedule": {**COSINE, "warmup": 1e2}},
        {"lr_schedule": {**COSINE, "warmup": None, "warmup_init": None}},
        {"iters": 1e3, "save_every": 1e2, "train": 1, "grad_checkpoint": 0},
        {"optimizer": "AdamW", "optimizer_config": {"adamw": {"betas": [0.9, 0.9]}}},
    ],
)
def test_options_of_mlx_lm_are_accepted(folder, changes):
    check(options(folder, **changes), 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 5}, "model: found 5, wanted text"),
        ({"clear_cache_threshold": "-4GB"}, "threshold: found '-4GB', wanted a whole"),
        ({"train": "yes"}, "train: found 'yes', wanted true or false"),
        ({"seed": -1}, "seed: found -1, wanted 0 to 4294967295"),
        ({"fine_tune_type": "loar"}, "fine_tune_type: found loar, wanted lora, dora"),
        ({"resume_adapter_file": "/none"}, "resume_adapter_file: there is no file"),
        ({"lora_parameters": {"rank": 4}}, "has no dropout and no scale: the section"),
        ({"lora_parameters": 4}, "lora_parameters: found 4, wanted names and values"),
        ({"lora_parameters": {**LORA, "rank": 0}}, "rank: found 0, wanted a whole"),
        ({"lora_parameters": {**LORA, "dropout": 1.0}}, "dropout: found 1.0, wanted"),
        ({"lora_parameters": {**LORA, "scale": "2"}}, "scale: found '2', wanted a num"),
        ({"lora_parameters": {**LORA, "keys": "q_proj"}}, "keys: found 'q_proj', want"),
        ({"optimizer": "lion"}, "optimizer: found 'lion', wanted adam, adamw"),
        ({"optimizer_config": {"adam": {"beta": 1}}}, "adam: there is no option beta"),
        ({"optimizer_config": {"adam": None}}, "adam: found None, wanted names and"),
        ({"learning_rate": "fast"}, "learning_rate: found 'fast', wanted a number"),
        ({"lr_schedule": "cosine"}, "lr_schedule: found 'cosine', wanted name and arg"),
        ({"lr_schedule": {"name": "cosin"}}, "name: found 'cosin', wanted expo"),
        ({"lr_schedule": {**COSINE, "arguments": 1}}, "arguments: found 1, wanted a l"),
        ({"lr_schedule": {**COSINE, "arguments": [1]}}, "cosine_decay are init, decay"),
        ({"lr_schedule": {**COSINE, "warmup": "2"}}, "warmup: found '2', wanted a num"),
        (
            {"lr_schedule": {**COSINE, "warmup": 1, "warmup_init": "0"}},
            "lr_schedule: warmup_init: found '0', wanted a number",
        ),
    ],
)
def test_option_that_cannot_work_is_refused_by_name(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        check(options(folder, **changes), 1)


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("train", [], "train.jsonl is empty: add rows, or remove it"),
        ("valid", [], "valid.jsonl is empty: add rows, or remove it"),
        ("train", [*TEXTS, "{x"], "line 4 of .*train.jsonl is no JSON: Expecting"),
        ("train", [*TEXTS, b"\xff"], "line 4 of .*train.jsonl is no text in UTF-8"),
        ("train", ["\ufeff" + TEXTS[0]], "line 1 of .*train.jsonl is no JSON: Unexpec"),
        ("train", [*TEXTS, "", *TEXTS], "line 4 of .*train.jsonl is empty"),
        ("train", ["[1]"], "line 1 of .*train.jsonl is no object of JSON"),
        ("train", ['{"txt": ""}'], "line 1 .* has txt, wanted prompt and completion, "),
        ("train", [*TEXTS, '{"txt": ""}'], "line 4 .* has no text, which the first"),
        ("test", ['{"txt": ""}'], "line 1 .*test.jsonl has txt, wanted prompt and"),
    ],
)
def test_file_of_data_that_cannot_be_read_is_refused_by_line(
    folder, name, lines, message
):
    lines = [line if isinstance(line, bytes) else line.encode() for line in lines]
    (folder / f"{name}.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    with pytest.raises(ValueError, match=message):
        check(options(folder), 1)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train", "\r".join(TEXTS)),
        ("valid", "\r\n".join(TEXTS)),
        ("valid", json.dumps({"text": "a\u2028\x85b"}, ensure_ascii=False)),
        ("test", TEXTS[0] + '\n{"txt": ""}\n[]'),
    ],
    ids=["CR", "CRLF", "separators", "unused"],
)
def test_files_of_data_that_mlx_lm_reads_are_accepted(folder, name, text):
    (folder / f"{name}.jsonl").write_bytes(text.encode())
    check(options(folder), 1)


def test_missing_file_of_data_is_named_with_the_flag(folder):
    with pytest.raises(
        ValueError, match=r"there is no .*test.jsonl, which --test needs"
    ):
        check(options(folder, test=True), 1)


@pytest.mark.skipif(find_spec("datasets") is not None, reason="datasets is installed")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hf_dataset": {"path": "a/b"}}, "^hf_dataset: pip install datasets"),
        ({"data": "a/b"}, "data: there is no folder a/b. If it is the name"),
    ],
)
def test_dataset_of_hugging_face_without_its_package_names_it(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        check(options(folder, **changes), 1)


def test_other_names_of_features_are_looked_for(folder):
    text = json.dumps({"body": "a"})
    (folder / "train.jsonl").write_text(text)
    check(options(folder, text_feature="body"), 1)


def test_row_that_cannot_be_tokenized_is_named():
    tokenizer = types.SimpleNamespace(encode=list, eos_token_id=0)
    rows = Rows("valid", TextDataset([{"text": "a"}, {"text": ""}], tokenizer))
    assert rows.process(rows[0]) == (["a", 0], 0)
    with pytest.raises(
        ValueError, match=r"valid dataset .* {'text': ''}: IndexError: list index"
    ):
        rows.process(rows[1])
