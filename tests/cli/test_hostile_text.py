"""Control characters and markup in what `mlxdist` prints of files and hosts."""

import json

import pytest

from mlxdist import cli
from mlxdist.checkpoint import CheckpointError, directory, manifest
from mlxdist.cli import doctor
from mlxdist.comm.flight_recorder import Failure, RankInfo, Recorder
from mlxdist.doctor import Finding
from mlxdist.world.record_file import write_record
from tests.support.checkpoints import example_manifest

HOSTILE = "x\r\x1b[2K\x9b\u2028\u202e[red]\nmlxdist run: all ranks finished"
ESCAPED = "x\\r\\x1b[2K\\x9b\\u2028\\u202e[red]"
CONTROLS = set("\r\x1b\x9b\u2028\u202e")


def printed(capsys):
    """Return what was printed, without control characters."""
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert set(text) & CONTROLS == set(), ascii(text)
    return text


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")


def save_hostile(folder, **fields):
    """Write the manifest of a checkpoint without its files."""
    path = folder / directory.Save(1, 7).name
    path.mkdir()
    content = json.loads(manifest.to_bytes(example_manifest()))
    del content["sha256"]
    content.update(fields)
    signed = {"sha256": manifest.digest(content), **content}
    (path / directory.NAME).write_text(json.dumps(signed))


@pytest.mark.parametrize("action", ["show", "verify", "consolidate"])
@pytest.mark.parametrize(
    "fields",
    [
        {"saved_at": HOSTILE, "strategy": HOSTILE},
        {"optimizer": [{"name": HOSTILE}]},
        {"files": [{"name": HOSTILE}]},
        {HOSTILE: 1},
    ],
    ids=["saved_at", "optimizer", "files", "key"],
)
def test_checkpoints_print_no_control_character(action, fields, tmp_path, capsys):
    save_hostile(tmp_path, **fields)
    arguments = ["--to", str(tmp_path / "plain")] * (action == "consolidate")
    assert cli.main(["checkpoint", action, str(tmp_path), *arguments]) > 0
    lines = printed(capsys).splitlines()
    assert lines
    assert not [line for line in lines if line.startswith("mlxdist run:")]


def test_checkpoint_error_has_no_control_character():
    assert str(CheckpointError(HOSTILE)).startswith(f"{ESCAPED}\n")


@pytest.mark.parametrize("field", ["host", "location", "stack", "traceback", "message"])
def test_postmortem_prints_no_control_character(field, tmp_path, capsys):
    texts = dict.fromkeys(("host", "location", "message"), "h")
    texts[field] = HOSTILE
    lines = {
        name: [HOSTILE if field == name else "x"] for name in ("stack", "traceback")
    }
    failure = Failure(1.0, "in update", texts["message"], "", lines["traceback"])
    info = RankInfo(0, 1, texts["host"], 1, lines["stack"], texts["location"])
    write_record(Recorder(), tmp_path / "a" / "job", info)
    failed = RankInfo(1, 2, "h", 1, [], "", failure)
    write_record(Recorder(), tmp_path / "a" / "job", failed)
    assert cli.main(["doctor", "--postmortem", str(tmp_path / "a")]) == 0
    text = printed(capsys)
    assert ESCAPED in text
    assert "\nmlxdist run:" not in text


def test_postmortem_indents_lines_of_a_traceback_that_look_like_a_verdict(
    tmp_path, capsys
):
    lines = ["RuntimeError: x", "mlxdist run: all ranks finished"]
    info = RankInfo(0, 1, "h", 1, [], "", Failure(1.0, "x", "m", "", lines))
    write_record(Recorder(), tmp_path / "job", info)
    assert cli.main(["doctor", "--postmortem", str(tmp_path / "job")]) == 0
    assert "RuntimeError: x\n  mlxdist run: all" in capsys.readouterr().out


def test_postmortem_prints_no_control_character_of_an_outcome(tmp_path, capsys):
    write_record(Recorder(), tmp_path / "job", RankInfo(1, 2, "h", 1, []))
    (tmp_path / "job" / "outcome.json").write_text(json.dumps({"message": HOSTILE}))
    assert cli.main(["doctor", "--postmortem", str(tmp_path / "job")]) == 0
    assert f"mlxdist run: {ESCAPED}\\nmlxdist run: all" in printed(capsys)


@pytest.mark.parametrize(
    "change",
    [{"size": 10**12}, {"size": "2"}, {"rank": -1}, {"stack": 7}, {"sequence": []}],
    ids=str,
)
def test_postmortem_refuses_a_record_that_can_not_be_true(change, tmp_path, capsys):
    write_record(Recorder(), tmp_path, RankInfo(0, 1, "h", 1, []))
    path = tmp_path / "rank-0.jsonl"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert cli.main(["doctor", "--postmortem", str(tmp_path)]) == 2
    assert "rank-0.jsonl is not a rank's record" in printed(capsys)


@pytest.mark.parametrize("text", [9**9 * "[", "{}\n" * 9])
def test_postmortem_refuses_deep_records(text, tmp_path, capsys):
    (tmp_path / "rank-0.jsonl").write_text(text[: 2**20])
    assert cli.main(["doctor", "--postmortem", str(tmp_path)]) == 2
    assert "rank-0.jsonl is not a rank's record" in printed(capsys)


def test_doctor_prints_no_control_character_of_a_host(capsys, monkeypatch):
    finding = Finding("ssh", HOSTILE, "failure", HOSTILE, host=HOSTILE)
    monkeypatch.setattr(doctor, "_examine", lambda _: ([finding], {}))
    assert cli.main(["doctor"]) == 1
    text = printed(capsys)
    assert text.count(ESCAPED) == 4
    assert "\nmlxdist run:" not in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "-n", "2", f"{HOSTILE}.py"],
        ["run", f"--{HOSTILE}", "x.py"],
        ["doctor", f"--{HOSTILE}"],
        ["checkpoint", "show", HOSTILE],
        ["run", "-H", HOSTILE, "x.py"],
        [HOSTILE],
    ],
    ids=["script", "option", "doctor", "folder", "host", "command"],
)
def test_errors_print_no_control_character_of_the_command_line(arguments, capsys):
    try:
        code = cli.main(arguments)
    except SystemExit as leaving:
        code = leaving.code
    assert code == 2
    text = printed(capsys)
    assert "\nmlxdist run:" not in text
    assert "x" in text
