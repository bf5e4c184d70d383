"""cli/plan: output and refused options of `mlxdist plan`."""

import json
import subprocess
import sys

import pytest

from mlxdist import cli
from mlxdist.cli import plan_report
from mlxdist.planner import Choice
from mlxdist.planner.time_model import CPU_SECONDS_PER_BYTE
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


def test_plan_measured_and_named_links_are_predicted(capsys, tmp_path):
    (tmp_path / "links.json").write_text(
        json.dumps(doctor_report({"bandwidth": 1e8, "latency": 1e-5}))
    )
    words = ["plan", "--parameters", "1e6", "--step-time", "0.1", "--memory", "1"]
    words += ["--measured", str(tmp_path / "links.json")]
    assert cli.main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["ranks"] for row in rows] == [1, 2, 4, 8, 16, 32, 64]
    assert set(rows[0]["seconds"]) == {"replicated", "tensors", "elements"}
    assert set(rows[0]["seconds"]["elements"]) == {"measured"}
    assert rows[1]["seconds"]["elements"]["measured"]["wire"] == pytest.approx(
        0.04, rel=0.01
    )
    words += ["--link", "Thunderbolt5", "--link", "2.5Gbit"]  # as people write them
    assert cli.main([*words, "-n", "2", "-n", "3", "--json"]) == 0
    times = json.loads(capsys.readouterr().out)[0]["seconds"]["elements"]
    assert list(times) == ["measured", "thunderbolt5", "2.5gbit"]
    wire = 4e6 * (8 / 2.5e9 * 1.046 + CPU_SECONDS_PER_BYTE)
    assert times["2.5gbit"]["wire"] == pytest.approx(wire, rel=0.02)
    assert cli.main([*words, "-n", "2", "-n", "3"]) == 0
    text = capsys.readouterr().out
    assert "thunderbolt5" in text
    assert "3 hosts: elements: saves" in text


def test_plan_with_step_time_prints_the_speed_up(capsys):
    words = ["plan", "--parameters", "4e6", "--link", "1gbe", "-n", "1", "-n", "4"]
    title = "speed-up over one host, in examples per second:"
    assert cli.main(words) == 0
    assert title not in capsys.readouterr().out
    words += ["--step-time", "0.1"]
    assert cli.main([*words, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)[1]
    time = row["seconds"][row["mode"]]["1gbe"]
    assert cli.main(words) == 0
    header, one, four, *_ = capsys.readouterr().out.partition(title)[2].split("\n")[1:]
    assert (header.split(), one.split()) == (["hosts", "1gbe"], ["1", "1"])
    lowest, highest = map(float, four.split()[1].split("-"))
    assert lowest == pytest.approx(0.4 / time["longest"], rel=0.05)
    assert highest == pytest.approx(0.4 / time["shortest"], rel=0.05)


def test_plan_with_too_little_memory_prints_nothing_fits(capsys):
    words = ["plan", "--parameters", "7e9", "-n", "2", "-n", "8", "--memory", "64"]
    assert cli.main(words) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "84.2 84.2 nothing fits 8 112" in text
    assert "2 hosts: elements: nothing fits: it needs 84.2 GB of 64 GB" in text
    assert "8 hosts: elements: saves" in text


def test_plan_with_an_unbalanced_owner_prints_its_share():
    def reason_with(reason):
        return plan_report.reason(
            Choice("replicated", reason, int(4e9), int(3e9), 5e9, imbalance=4.0)
        )

    sends = "but the owner of the largest tensors sends 4.0 times as much as without"
    assert reason_with("unbalanced") == (
        f"sharding saves 1 GB of 4 GB per rank, {sends}"
    )
    assert reason_with("needed") == (
        f"saves 1 GB of 4 GB per rank, which has 5 GB; {sends}"
    )
    assert reason_with("saves little").startswith("sharding only saves 1 GB of 4 GB")
    assert "nothing to shard" in reason_with("one rank")


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
