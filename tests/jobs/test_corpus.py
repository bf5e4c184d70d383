"""launch/corpus.py: which text is trained on, which is held out, and its rows."""

import corpus
import numpy as np
import pytest


def test_windows_overlap_by_the_byte_that_is_predicted_last():
    rows = corpus.windows(np.arange(10, dtype=np.uint8), 3, "to train on")
    assert rows.tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    with pytest.raises(ValueError, match="found 3 bytes of text to train on, wanted 4"):
        corpus.windows(np.arange(3, dtype=np.uint8), 3, "to train on")


def test_read_corpus_holds_out_some_whole_files_by_their_names(tmp_path):
    for number in range(200):
        (tmp_path / f"{number}.txt").write_text(f"{number:03}")
    (tmp_path / ".hidden").write_text("secret")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    train, held_out, _ = corpus.read_corpus(str(tmp_path))
    assert (len(train) + len(held_out)) == 200 * len("000\0")
    assert 1 <= len(held_out) // 4 <= 25  # 13 of 256 on average
    files = sorted(bytes(train).split(b"\0") + bytes(held_out).split(b"\0"))
    assert files[2:] == [b"%03d" % number for number in range(200)]
    again = corpus.read_corpus(str(tmp_path))
    assert bytes(again.held_out) == bytes(held_out)


def test_read_corpus_of_one_file_holds_out_its_end(tmp_path):
    (tmp_path / "a.txt").write_text("0123456789" * 100)
    train, held_out, _ = corpus.read_corpus(str(tmp_path))
    text = bytes(train) + bytes(held_out)
    assert text == b"0123456789" * 100 + b"\0"
    assert len(held_out) == len(text) * 13 // 256
