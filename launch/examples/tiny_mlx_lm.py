"""Writes a tiny model and data for mlx-lm, so that nothing has to be downloaded.

python launch/examples/tiny_mlx_lm.py FOLDER

FOLDER/model is an untrained Llama of 0.1M parameters, with a tokenizer of bytes, as
mlx-lm loads it. FOLDER/data has train.jsonl, valid.jsonl and test.jsonl.
"""

import argparse
import json
import random
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.llama import Model, ModelArgs
from mlx_lm.utils import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END = "</s>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--width", type=int, default=64, help="of the model")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=64, help="to train on")
    args = parser.parse_args()
    write_model(args.folder / "model", args.width, args.layers)
    write_data(args.folder / "data", args.rows)
    print(f"written: {args.folder}/model, {args.folder}/data")


def write_model(folder: Path, width: int = 64, layers: int = 2) -> None:
    """Save an untrained Llama, with rows of `width` and a token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, END])}
    config = {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": 2 * width,
        "num_attention_heads": 4,
        "rms_norm_eps": 1e-5,
        "vocab_size": len(vocabulary),
        "eos_token_id": vocabulary[END],
    }
    mx.random.seed(0)
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder.mkdir(parents=True, exist_ok=True)
    save(
        folder,
        folder,
        Model(ModelArgs.from_dict(config)),
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END),
        config,
    )


def write_data(folder: Path, rows: int = 64) -> None:
    """Write sums such as "12+7=19", as rows of text of different lengths."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in {"train": rows, "valid": 16, "test": 16}.items():
        with open(folder / f"{name}.jsonl", "w") as file:
            for _ in range(count):
                text = " ".join(a_sum(draw) for _ in range(draw.randint(1, 12)))
                file.write(json.dumps({"text": text}) + "\n")


def a_sum(draw: random.Random) -> str:
    a, b = draw.randint(0, 99), draw.randint(0, 99)
    return f"{a}+{b}={a + b}"


if __name__ == "__main__":
    main()
