"""launch/train_lm.py: options that it refuses, and its text."""

import sys

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("launch")


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--learning-rate nan", "found 'nan', wanted a number from 0 on"),
        ("--learning-rate inf", "found 'inf', wanted a number"),
        ("--learning-rate -1", "found '-1', wanted a number"),
        ("--learning-rate x", "found 'x', wanted a number"),
        ("--steps 0", "found '0', wanted an integer from 1 to"),
        ("--steps 1" + 5000 * "0", "wanted an integer from 1 to 1000000000"),
        ("--batch-size -3", "found '-3', wanted an integer"),
        ("--seed -1", "found '-1', wanted an integer from 0"),
        ("--seed 18446744073709551616", "wanted an integer from 0"),
        ("--master-dtype float32", "has no effect on float32 parameters"),
        ("--master-dtype 24bit", "has no effect on float32 parameters"),
        ("--state-dtype int8 --optimizer muon", "muon has no state in 8 bits"),
        ("--micro-batches 24", "found more than the 12 rows of a step"),
        ("--name ../x", "found '../x', wanted the name of a folder"),
        ("--name " + 256 * "x", "wanted the name of a folder"),
        ("--name .", "found '.', wanted the name of a folder"),
        ("--name=", "found '', wanted the name of a folder"),
    ],
)
def test_option_without_a_sense_is_refused(
    options, message, world, capsys, monkeypatch
):
    import train_lm

    monkeypatch.setattr(sys, "argv", ["train_lm.py", *options.split()])
    with pytest.raises(SystemExit) as caught:
        train_lm.parse_arguments(world)
    assert caught.value.code == 2
    assert (message in capsys.readouterr().err) == world.is_root


@pytest.mark.mpi
def test_options_of_use_are_accepted(world, monkeypatch):
    import train_lm

    options = "--learning-rate 0 --dtype bfloat16 --master-dtype 24bit --seed 7"
    options += " --state-dtype int8"
    monkeypatch.setattr(sys, "argv", ["train_lm.py", *options.split()])
    args = train_lm.parse_arguments(world)
    assert (args.learning_rate, args.seed, args.name) == (0.0, 7, None)
    options = train_lm.wrap_optimizer(args, world).options
    assert (options.master_dtype, options.state_dtype) == ("24bit", "int8")


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_learning_rate_of_zero_is_used(name):
    from model import make_optimizer

    optimizer = make_optimizer(name, 100, 0.0)
    parts = getattr(optimizer, "optimizers", [optimizer])
    for _ in range(20):
        assert [part.learning_rate.item() for part in parts] == [0.0] * len(parts)
        for part in parts:
            part.apply_gradients({}, {})


def test_checksum_differs_between_texts(launch):
    from corpus import checksum

    texts = [np.frombuffer(text, np.uint8) for text in (b"one", b"two", b"one")]
    first, second, third = (checksum(text).tolist() for text in texts)
    assert first == third != second
    assert len(first) == 32


@pytest.mark.long
def test_checksum_of_a_text_above_2_gib_is_made():
    from corpus import checksum

    text = np.broadcast_to(np.uint8(65), 2**31 + 1)  # one byte of memory
    assert checksum(text).tolist() != checksum(text[:-1]).tolist()


def test_text_is_recognized_across_pieces(launch, monkeypatch):
    import corpus

    monkeypatch.setattr(corpus, "PIECE", 3)
    assert corpus.is_text("éèàüñ€".encode())
    assert not corpus.is_text("éèàüñ€".encode()[:-1])
    assert not corpus.is_text(b"abcde\0")
    assert not corpus.is_text(b"")


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("none", "--data none: there is no such folder"),
        ("file.txt", "--data file.txt: that is a file"),
        ("empty", "empty has no text files"),
        ("", "--data : there is no such folder"),
        ("short", "found 2 bytes of text to train on, wanted 129 or more"),
        ("small", " rows of text, wanted 400 a step"),
    ],
)
def test_data_that_can_not_be_used_is_refused(data, message, world, capsys, launch):
    from corpus import read_rows

    if world.is_root:
        for name in ("empty", "short", "small"):
            (launch / name).mkdir()
        (launch / "file.txt").write_text("text")
        (launch / "short" / "a.txt").write_text("a")
        (launch / "small" / "a.txt").write_text("a" * 7000)
    world.barrier()
    with pytest.raises(SystemExit) as caught:
        read_rows(data, world, context=128, needed=400)
    assert caught.value.code == 2
    assert (message in capsys.readouterr().err) == world.is_root
