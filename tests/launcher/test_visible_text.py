"""Control characters in messages, and messages that parts of others could forge."""

import io

import pytest

from mlxdist.launcher import failure, marks, standard_streams, summary
from mlxdist.launcher.outcome import RankOutcome
from mlxdist.launcher.output import Output
from mlxdist.launcher.tagged_stream import Piece
from mlxdist.launcher.visible_text import (
    message_of,
    visible,
    visible_bytes,
    visible_lines,
)
from mlxdist.world import hooks

VERDICT = "mlxdist run: all ranks finished"
# What a terminal takes for the end of a line, an empty line, or another direction.
CONTROLS = "\x00\x07\x08\x0b\x0c\r\x1b\x1e\x7f\x85\x9b\xad\u061c\u200b\u200e\u2028"
CONTROLS += "\u2029\u202a\u202e\u2066\ufeff\U000e0041\udc9b"
CONTROLS += "\u034f\u1160\u17b4\u180b\u3164\ufe0f\uffa0\U000e0100"  # show nothing
FORGED = f"x\r\x1b[2K\x9b2K\n{VERDICT}\u2028{VERDICT}\u202e"


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
def test_control_characters_are_escaped_in_one_line_and_in_several(control):
    escape = control.encode("unicode_escape").decode()
    assert visible(f"a{control}b") == f"a{escape}b"
    assert visible_lines(f"a{control}b\n{control}") == f"a{escape}b\n{escape}"
    assert message_of(control) == escape


@pytest.mark.parametrize(
    "text", ["", "a/b c.py:12", "träge μ 学习\u3000率", "\u00a0", "C:\\x\\n", "🙂"]
)
def test_other_text_stays_as_it_is(text):
    assert visible(text) == visible_lines(text) == message_of(text) == text


def test_ends_of_lines_and_tabs_stay_in_text_of_several_lines():
    assert visible("a\n\tb") == "a\\n\\tb"
    assert visible_lines("a\r\n\tb\n") == "a\n\tb\n"


@pytest.mark.parametrize("front", ["", " ", "\u0338", "\u20dd", "\u2800", "-- \xa0"])
def test_later_line_that_looks_like_a_verdict_is_indented(front):
    assert message_of(f"x\n\n{front}{VERDICT}") == f"x\n\n  {front}{VERDICT}"


def test_bytes_that_are_no_text_are_escaped():
    data = b"a\xff\x1b[0m \xc3\xa4\0\n"
    assert visible_bytes(data) == "a\\xff\\x1b[0m ä\n".encode()


def lines_like_verdicts(text):
    return [line for line in text.splitlines() if line.startswith("mlxdist run:")]


def check_harmless(text):
    """Check that no control character is in a text, and no line of the forged ones."""
    assert set(text) & set(CONTROLS) == set(), ascii(text)
    assert VERDICT in text
    assert VERDICT not in lines_like_verdicts(text)


def test_print_error_shows_a_forged_line_as_a_part_of_its_message(capsys):
    standard_streams.print_error(f"mlxdist: error: {FORGED}")
    error = capsys.readouterr().err
    check_harmless(error)
    assert error.startswith("mlxdist: error: x\\r\\x1b[2K\\x9b2K\n  mlxdist run: all")


@pytest.mark.parametrize("field", ["reason", "step", "location", "host", "lost"])
def test_last_line_is_one_line_whatever_ranks_and_hosts_report(field):
    names = {field: FORGED} if field != "lost" else {}
    rank = RankOutcome(0, "failed", **{"location": "x.py:1", **names})
    lost = [FORGED] if field == "lost" else []
    outcome = summary.conclude(1, (rank,), name_hosts=True, lost_hosts=lost)
    check_harmless(outcome.message)
    assert "\n" not in outcome.message
    assert "\\u2028mlxdist" in outcome.message


def render(rank, text, **options):
    output = Output(run_dir="", ranks=2, **options)
    pieces = [Piece(rank, 2, text.encode(errors="surrogatepass"))]
    return b"".join(shown for _, shown in output.render(pieces))


def test_text_of_mpirun_and_of_other_hosts_in_it_is_escaped():
    check_harmless(render(None, f"ssh: {FORGED}\n").decode())
    forged = render(None, f"{VERDICT}\r\n")
    assert forged == f"[mpirun] {VERDICT}\n".encode()


def test_line_of_a_rank_that_looks_like_a_message_of_the_launcher_has_its_rank():
    colours = "\x1b[31mred\x1b[0m\n"
    shown = render(1, f"{colours}{VERDICT}\n\r{VERDICT}\n").decode()
    assert shown == f"{colours}[rank 1] {VERDICT}\n\r[rank 1] {VERDICT}\n"
    assert render(1, f"{VERDICT}\n", label=True).decode() == f"[rank 1] {VERDICT}\n"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_standard_output_is_changed_on_a_terminal_only(is_terminal, monkeypatch):
    monkeypatch.setattr("os.isatty", lambda _: is_terminal)
    output = Output(run_dir="", ranks=2)
    ((_, shown),) = output.render([Piece(1, 1, VERDICT.encode())])
    assert shown.decode() == is_terminal * "[rank 1] " + VERDICT


def test_traceback_of_a_rank_is_escaped_and_the_log_has_it_as_it_is(tmp_path, capfd):
    text = f"ValueError: {FORGED}\n"
    marks.mark_file(str(tmp_path), "traceback", 1).write_text(text, errors="replace")
    ranks = [RankOutcome(1, "failed", reason="ValueError")]
    texts = failure.tracebacks(str(tmp_path), ranks)
    with io.BytesIO() as log:
        output = Output(run_dir=str(tmp_path), ranks=2, logs={1: log})
        failure.show(texts, output, has_record=False)
        assert log.getvalue().decode() == texts[1]
    check_harmless(capfd.readouterr().err)


def test_report_of_a_rank_without_a_launcher_is_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="surrogatepass")
    monkeypatch.setattr("sys.stderr", stream)
    hooks.log(f"mlxdist: rank 1 failed:\n {FORGED}")
    stream.seek(0)
    assert set(stream.read()) & set(CONTROLS) == set()


def test_forged_verdict_of_a_failing_rank_is_no_line_of_its_own(run):
    source = f"print({VERDICT!r}, flush=True)\nraise ValueError({FORGED!r})"
    result = run(source, ranks=1)
    assert result.returncode == 1
    assert result.stdout == f"{VERDICT}\n"  # no terminal
    check_harmless(result.stderr)
    (last,) = lines_like_verdicts(result.stderr)
    assert last.startswith("mlxdist run: rank 0 of 1 failed at script.py:2 ")
