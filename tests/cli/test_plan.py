"""cli/plan: output and refused options of `mlxdist plan`."""

import ast
import json
import re
import subprocess
import sys

import mlx.core as mx
import pytest

from mlxdist import cli
from mlxdist.planner import CPU_SECONDS_PER_BYTE
from tests.support.doctor_report import doctor_report


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-n", "5000"], "wanted at most 4096"),
        (["--step-time", "1", "--update-time", "2"], "is a part of --step-time"),
    ],
)
def test_plan_beyond_its_limits_is_refused(options, message, capsys):
    assert cli.main(["plan", "--parameters", "1e6", *options]) == 2
    assert message in capsys.readouterr().err


def output_of(words, capsys):
    """Return what the command prints, its spaces and line breaks as single spaces."""
    assert cli.main(["plan", *words.split()]) == 0
    return " ".join(capsys.readouterr().out.split())


def rows_of(words, capsys):
    return json.loads(output_of(f"{words} --json", capsys))


def test_plan_measured_and_named_links_are_predicted(capsys, tmp_path):
    file = tmp_path / "links.json"
    file.write_text(json.dumps(doctor_report({"bandwidth": 1e8, "latency": 1e-5})))
    words = f"--parameters 1M --step-time 0.1 --memory 1 --measured {file}"
    rows = rows_of(words, capsys)
    assert [row["ranks"] for row in rows] == [1, 2, 4, 8]
    assert set(rows[0]["seconds"]) == {"replicated", "tensors", "elements"}
    assert set(rows[0]["seconds"]["elements"]) == {"measured"}
    time = rows[1]["seconds"]["elements"]["measured"]
    assert time["communication"] == pytest.approx(0.04, rel=0.01)
    words += " --link Thunderbolt5 --link 2.5Gbit -n 2 -n 3"  # as people write them
    times = rows_of(words, capsys)[0]["seconds"]["elements"]
    assert list(times) == ["measured", "thunderbolt5", "2.5gbit"]
    time = times["2.5gbit"]
    terms = [time[name] for name in ("transfer", "latency", "copying")]
    assert sum(terms) == time["communication"]
    assert terms[0] == pytest.approx(4e6 * 8 / 2.5e9 * 1.046, rel=0.02)
    assert terms[2] == pytest.approx(4e6 * CPU_SECONDS_PER_BYTE, rel=0.02)
    assert "thunderbolt5: 9.56 GB/s, 20 us a message, 0.4 s a GB" in output_of(
        words, capsys
    )


@pytest.mark.parametrize(
    ("step", "text"),
    [("0.01", "slower than one machine"), ("0.06", "may be slower than one machine")],
)
def test_plan_with_step_time_prints_the_speed(step, text, capsys):
    words = "--parameters 4M --link 1gbe -n 1 -n 4"
    assert "speed" not in output_of(words, capsys)
    words += f" --step-time {step}"
    row = rows_of(words, capsys)[1]
    time = row["seconds"][row["mode"]]["1gbe"]
    page = output_of(words, capsys)
    assert text in page
    (speed,) = re.findall(r"([0-9.]+)-?[0-9.]*: (?:may be )?slower than", page)
    assert float(speed) == pytest.approx(4 * float(step) / time["longest"], rel=0.05)
    fast = output_of("--parameters 4M --link 10gbe -n 4 --step-time 9", capsys)
    assert "slower" not in fast


@pytest.mark.parametrize(
    ("words", "rank_gigabytes"),
    [
        # parameters + gradients + state / 2 + masters / 2, and means / 2, in float32
        # where there are masters
        ("--parameters 7B --dtype bfloat16 --master-dtype float32", 70 + 14),
        ("--parameters 7e9 --dtype bfloat16", 14 + 14 + 14 + 7),
        ("--parameters 1.5b", 6 + 6 + 6 + 3),
        ("--parameters 350M --ema", 1.4 + 1.4 + 1.4 + 0.7 + 0.7),
        ("--parameters 20M --frozen 8B --frozen-dtype 4bit", 4.5 + 4 * 0.08 - 0.04),
        ("--parameters 1B --accumulate 4", 4 + 4 + 4 + 4 + 2),
    ],
)
def test_plan_of_sharded_update_counts_each_term(words, rank_gigabytes, capsys):
    (row,) = rows_of(f"{words} -n 2", capsys)
    shard = [each for each in row["choices"] if each["changes"] == ["shard"]]
    if not shard:  # it saves less than 2%
        shard = row["choices"][:1]
        rank_gigabytes += 0.1
    (choice,) = shard
    assert sum(choice["memory"].values()) == choice["total"]
    small = choice["memory"]["buckets"] + choice["memory"]["process"]
    assert (choice["total"] - small) / 1e9 == pytest.approx(rank_gigabytes, rel=0.002)


def test_plan_prints_a_sum_that_can_be_checked_by_hand(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    words = "--parameters 8B --dtype bfloat16 --master-dtype float32 -n 2"
    assert cli.main(["plan", *words.split(), "--memory", "50GB"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    begin = next(i for i, line in enumerate(lines) if "memory of a rank" in line)
    end = next(i for i, line in enumerate(lines) if line.startswith("sum"))
    figures = [float(line.split()[-1]) for line in lines[begin + 1 : end + 1]]
    assert sum(figures[:-1]) == pytest.approx(figures[-1], abs=0.003)
    page = "\n".join(lines)
    assert re.search(r"state +8,000,000,000 x 2\.125 bytes / 2 +8\.50", page)
    assert re.search(r"master weights +8,000,000,000 x 1 byte / 2 +4\.0", page)
    assert 'master_dtype="24bit", state_dtype="int8"' in page
    assert "optimizer.minimize(loss_fn, model, *batch)" in page
    assert "activations" in page


@pytest.mark.parametrize("columns", ["1", "40", "200"])
def test_plan_cuts_off_nothing_whatever_the_width(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    words = "--parameters 8B --dtype bfloat16 --master-dtype float32 -n 2 --step-time 1"
    assert cli.main(["plan", *words.split(), "--memory", "50GB"]) == 0
    page = capsys.readouterr().out
    assert "\u2026" not in page
    assert "* shard, minimize, 24bit, int8 " in page


@pytest.mark.parametrize("ranks", [1, 2])
def test_plan_prints_python_that_can_be_read(ranks, capsys):
    words = f"--parameters 8B --optimizer adadelta --accumulate 4 --ema -n {ranks}"
    assert cli.main(["plan", *words.split(), "--max-norm"]) == 0
    page = capsys.readouterr().out
    code = [line[4:] for line in page.splitlines() if line.startswith("    ")]
    text = "\n".join(code[: next(i for i, line in enumerate(code) if "loss" in line)])
    (call,) = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Assign)]
    names = [keyword.arg for keyword in call.value.keywords]
    expected = ["shard", "max_norm", "accumulate", "ema_decay"]
    assert names == expected[ranks == 1 :]


def test_plan_with_too_little_memory_prints_nothing_fits(capsys):
    words = "--parameters 70B -n 2 -n 8 --memory 64GiB"
    text = output_of(words, capsys)
    assert "Nothing fits: on 8 hosts with 68.7 GB a rank, the smallest needs " in text
    assert [row["fits"] for row in rows_of(words, capsys)] == [False, False]


def test_plan_of_an_unbalanced_model_prints_the_owners_share(capsys, tmp_path):
    arrays = {"embed": mx.zeros((30000, 100))}
    arrays |= {f"layers.{i}": mx.zeros((100, 100)) for i in range(100)}
    mx.save_safetensors(str(tmp_path / "x.safetensors"), arrays)
    words = f"--model {tmp_path}/x.safetensors --optimizer muon -n 8"
    text = output_of(f"{words} --memory 121MB", capsys)
    assert "The owner of the largest tensors sends 6.0 times" in text


def test_plan_into_a_closed_pipe_exits_with_1_in_silence():
    words = [sys.executable, "-m", "mlxdist.cli", "plan", "--parameters", "1e6"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("plan", "--parameters --model is required"),
        ("plan --parameters 0", "found '0', wanted a number from 1 to 1e15"),
        ("plan --parameters nan", "found 'nan'"),
        ("plan --parameters 1e99", "found '1e99'"),
        ("plan --parameters 5 --model x", "not allowed with argument"),
        (
            "plan --model /no/file",
            "--model /no/file: No such file or directory; wanted safetensors files",
        ),
        ("plan --model /", "/ is not a file"),
        ("plan --model x --dtype float32", "a model file has its own"),
        ("plan --parameters 5 --step-time -1", "wanted a number above 0"),
        ("plan --parameters 5 --link 9999999999gbit", "found '9999999999gbit'"),
        ("plan --parameters 5 --optimizer none", "invalid choice: 'none'"),
        ("plan --parameters 7X", "found '7X', wanted a number from 1 to 1e15, such as"),
        ("plan --parameters 5 --memory 64Gb/s", "found '64Gb/s', wanted an amount"),
        ("plan --parameters 5 --memory 0GB", "found '0GB', wanted an amount"),
        ("plan --parameters 5 --optimizer muon --state-dtype int8", "not for muon"),
        ("plan --parameters 5 --link fast", "found 'fast', wanted one of thunder"),
        ("plan --parameters 5 --link 0gbit", "found '0gbit'"),
        (
            "plan --parameters 5 --measured /no/file",
            "--measured /no/file: No such file or directory; wanted what `mlxdist doc",
        ),
        ("plan --parameters 5 --measured /", "--measured /: Is a directory"),
        ("plan --parameters 5 --measured /dev/null", "--measured /dev/null: Expecting"),
    ],
)
def test_plan_with_a_wrong_option_exits_with_2_and_names_it(words, message, capsys):
    try:
        code = cli.main(words.split())
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    output = capsys.readouterr().err
    assert "error: " in output
    assert message in output
    assert "[Errno" not in output
