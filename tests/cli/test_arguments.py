"""The command `mlxdist`: its version, its help, and what it refuses."""

import pytest

from mlxdist import __version__, cli


def exit_code(arguments):
    try:
        return cli.main(arguments)
    except SystemExit as leaving:
        return leaving.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "doctor --postmortem {folder}/none",
            "--postmortem {folder}/none: there is no",
        ),
        ("doctor --postmortem {folder}", "--postmortem {folder}: it has no rank-*.js"),
        ("doctor --python no-such-python", "there is no such program here"),
        ("checkpoint show {file}", "error: {file}: Not a directory"),
        ("nonsense", "invalid choice: 'nonsense'"),
        ("", "arguments are required: COMMAND"),
    ],
)
def test_main_with_invalid_arguments_returns_2(arguments, message, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    words = arguments.format(file=file, folder=tmp_path).split()
    assert exit_code(words) == 2
    error = capsys.readouterr().err
    assert message.format(file=file, folder=tmp_path) in error
    assert "[Errno" not in error


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--version"], f"mlxdist {__version__}\n"),
        (["--help"], "run N ranks of a script, on this machine or on several"),
        (["run", "--help"], "mlxdist run -n 2 train.py"),
    ],
)
def test_main_prints_version_and_help(arguments, text, capsys):
    assert exit_code(arguments) == 0
    assert text in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ("run --nope -n 1 x.py", "run"),
        ("plan --parameters 1e9 --nope", "plan"),
        ("doctor --nope", "doctor"),
        ("test --nope", "test"),
        ("checkpoint verify x --nope", "checkpoint"),
    ],
)
def test_main_with_an_unknown_option_names_the_help_in_two_lines(
    arguments, command, capsys
):
    assert exit_code(arguments.split()) == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage.startswith(f"usage: mlxdist {command} ")
    assert error.endswith(
        f"there is no option --nope; `mlxdist {command} --help` lists them"
    )


def test_run_of_too_many_ranks_is_refused(capsys):
    assert exit_code(["run", "-n", "99999999", "x.py"]) == 2
    assert "-n 99999999: wanted at most 4096 ranks" in capsys.readouterr().err
