"""`mlxdist plan` as a command: what it prints, and what it refuses."""

import json
import subprocess
import sys

import pytest

from mlxdist import cli
from mlxdist.planner import time_model as predict
from tests.support.examples import doctor_report


@pytest.mark.parametrize(
    "words", [["-n", "5000"], ["--step-time", "1", "--update-time", "2"]]
)
def test_what_can_not_be_planned(words, capsys):
    assert cli.main(["plan", "--parameters", "1e6", *words]) == 2
    assert "wanted at most" in (said := capsys.readouterr().err) or "part of" in said


def test_the_command(capsys, tmp_path):
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
    wire = 4e6 * (8 / 2.5e9 * 1.046 + predict._WORK)
    assert times["2.5gbit"]["wire"] == pytest.approx(wire, rel=0.02)
    assert cli.main([*words, "-n", "2", "-n", "3"]) == 0
    text = capsys.readouterr().out
    assert "thunderbolt5" in text
    assert "3 hosts: elements: saves" in text


def test_what_is_won_is_told_where_a_step_is_known(capsys):
    words = ["plan", "--parameters", "4e6", "--link", "1gbe", "-n", "1", "-n", "4"]
    told = "how many times the examples a second of one host:"
    assert cli.main(words) == 0
    assert told not in capsys.readouterr().out
    words += ["--step-time", "0.1"]
    assert cli.main([*words, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)[1]
    time = row["seconds"][row["mode"]]["1gbe"]
    assert cli.main(words) == 0
    header, one, four, *_ = capsys.readouterr().out.partition(told)[2].split("\n")[1:]
    assert (header.split(), one.split()) == (["hosts", "1gbe"], ["1", "1"])
    least, most = map(float, four.split()[1].split("-"))
    assert least == pytest.approx(0.4 / time["longest"], rel=0.05)
    assert most == pytest.approx(0.4 / time["shortest"], rel=0.05)


def test_hosts_that_are_too_small_are_told(capsys):
    words = ["plan", "--parameters", "7e9", "-n", "2", "-n", "8", "--memory", "64"]
    assert cli.main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "84.2 84.2 nothing fits 8 112" in said
    assert "2 hosts: elements: nothing fits: it needs 84.2 GB of 64 GB" in said
    assert "8 hosts: elements: saves" in said


def test_a_reader_may_leave():
    words = [sys.executable, "-m", "mlxdist.cli", "plan", "--parameters", "1e6"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("plan", "--parameters --model is required"),
        ("plan --parameters 0", "found '0', wanted a number such as 7e9"),
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
def test_refusals(words, why, capsys):
    try:
        code = cli.main(words.split())
    except SystemExit as leaving:
        code = leaving.code
    assert code == 2
    said = capsys.readouterr().err
    assert "error: " in said
    assert why in said
    assert "[Errno" not in said


def test_the_command_line_is_there_at_once():
    """What takes long to import waits until it is needed: `run` starts others."""
    code = "import sys, mlxdist.cli; slow = {'numpy', 'mlx.core', 'rich'}; "
    code += "print(sorted(slow & {*sys.modules}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout == "[]\n", ran.stderr
