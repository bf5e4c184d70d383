"""The HTML page of a run, also in a real browser."""

import json
import os
import re
import shutil
import subprocess

import pytest

from mlxdist import cli
from mlxdist.report import Run, page_of, read_run
from mlxdist.report.run_files import parse_metrics
from mlxdist.report.sections import numbers
from tests.support.html import HOSTILE, Page
from tests.support.traces import chrome_events

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def rows():
    for step in range(1, 40):
        row = {"step": step, "train_loss": 9 / step, "tokens_per_second": 5e4 + step}
        row |= {"peak_memory": 2.0, "peak_memory_min": 1.5, "peak_memory_max": 2.5}
        row |= {"step_time": 0.1, "wait_time": 0.01, HOSTILE: 1}
        yield row
    yield {"step": 39, "val_loss": 0.5}


@pytest.fixture
def folder(tmp_path):
    """A folder of a run with all files, whose texts are hostile."""
    folder = tmp_path / f"a {HOSTILE.replace('/', '')} run"
    folder.mkdir()
    lines = [json.dumps(row) for row in rows()]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 40, "tr']))
    config = {"hosts": [HOSTILE] * 2, HOSTILE: {HOSTILE: HOSTILE}, "long": "x" * 9999}
    (folder / "run.json").write_text(json.dumps(config))
    ranks = [{"rank": 0, "state": "failed", "host": HOSTILE, "reason": HOSTILE}, 7]
    outcome = {"exit_code": 1, "message": HOSTILE, "ranks": ranks, "seconds": 1.5}
    (folder / "failure.json").write_text(json.dumps(outcome))
    wait = {"name": "w", "cat": "waiting", "ph": "X", "ts": 1e6, "dur": 2e6}
    update = {"name": "o.update", "cat": "call", "ph": "X", "ts": 5e5, "dur": 9e6}
    events = chrome_events(0, update, {**wait, "tid": 2}) + chrome_events(1, update)
    for event in events:
        if event["name"] == "process_name":
            event["args"]["host"] = HOSTILE
    (folder / "timeline.json").write_text(json.dumps({"traceEvents": events}))
    return folder


def test_page_has_all_sections_and_no_markup_of_the_run(folder):
    page = Page(page_of(read_run(folder)))
    known = {"html", "head", "meta", "title", "style", "body", "main", "footer"}
    known |= {"h1", "h2", "p", "dl", "dt", "dd", "div", "section", "figure"}
    known |= {
        "figcaption",
        "ul",
        "li",
        "i",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    }
    known |= {"th", "td", "svg", "path", "text", "rect", "circle"}
    assert set(page.tags) == known
    assert {name for name, _ in page.attributes} & {"src", "href", "onload"} == set()
    for heading in ("Loss", "Speed", "Memory of a rank", "Time of a step"):
        assert heading in page.words
    for words in (
        "Where the time went",
        "How the job ended",
        "Configuration",
        f"The job failed: {HOSTILE}",
        "1 line of metrics.jsonl could not be read.",
        "training loss 0.2308 validation loss 0.5 ",
        "waiting for a late rank 10.0%",
        "is waited for longest: each other rank waits",
        HOSTILE,
    ):
        assert words in page.text
    assert "x" * 401 not in page.text
    assert "Not on this page" not in page.text


def test_page_says_what_is_missing_and_what_gives_it(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "failure.json").write_text("[")
    page = Page(page_of(read_run(tmp_path)))
    assert "failure.json is no JSON" in page.text
    assert f"--timeline {tmp_path}/timeline.json" in page.text
    assert "no metrics: log them with" in page.text
    assert "run.json is empty." in page.text
    assert "svg" not in page.tags


def test_page_of_a_diverged_run_that_was_ended_says_so(tmp_path):
    lines = [{"step": 1, "train_loss": 2.5}, {"step": 2, "train_loss": None}]
    text = "\n".join(map(json.dumps, lines))
    (tmp_path / "metrics.jsonl").write_text(text)
    outcome = {"exit_code": 143, "message": "ended by SIGTERM; rank 0 did not finish."}
    (tmp_path / "failure.json").write_text(json.dumps(outcome))
    page = Page(page_of(read_run(tmp_path)))
    assert "not finite; 2.5 at step 1" in page.words
    assert "The job was ended by SIGTERM; rank 0 did not finish." in page.words


def test_numbers_are_those_of_the_charts():
    metrics = parse_metrics('{"step": 12345678, "train_loss": 2.5, "loss": 9}')
    figures = numbers(Run("x", metrics))
    assert figures == {"steps": "12,345,678", "training loss": "2.5"}


def test_colors_have_a_contrast_to_the_page():
    html = page_of(Run("x"))
    light, dark = re.findall(r":root \{[^}]*--page[^}]*\}", html)
    for scheme in (light, dark):
        colors = dict(re.findall(r"--(\w+): (#\w{6})", scheme))
        for name, least in {"text": 7, "soft": 4.5, "bad": 4.5, "warn": 4.5}.items():
            for ground in ("page", "panel"):
                assert contrast(colors[name], colors[ground]) >= least, name
        for index in range(5):
            assert contrast(colors[f"c{index}"], colors["page"]) >= 3, index


def contrast(first, second):
    """Return the contrast ratio of two colors, by WCAG 2."""

    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [
            p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
        ]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_command_prints_the_parts_and_writes_the_page(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert cli.main(["report", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"rank +host +time +computing +updating +wire +waiting", printed)
    assert re.search(r" all +\d+\.\d%", printed)
    assert printed.endswith("report.html\n")
    page = folder / "report.html"
    assert page.stat().st_mode & 0o777 == 0o600
    assert page.read_text() == page_of(read_run(folder))
    assert not [entry for entry in folder.iterdir() if entry.name.startswith(".")]


def test_command_warns_of_what_cannot_be_read(tmp_path, capsys):
    (tmp_path / "timeline.json").write_text("{")
    (tmp_path / "run.json").write_text("{}")
    page = tmp_path / "new" / "page.html"
    assert cli.main(["report", str(tmp_path), "--output", str(page)]) == 0
    out, err = capsys.readouterr()
    assert "mlxdist: warning: " in err
    assert "timeline.json is no JSON" in err
    assert "no metrics: log them with mlxdist.trackers.RunLog\n" in out
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [(["{}/none"], "is no folder"), (["{}"], "has none of")],
)
def test_command_refuses_what_is_no_run(arguments, problem, tmp_path, capsys):
    words = [word.format(tmp_path) for word in arguments]
    assert cli.main(["report", *words]) == 2
    assert problem in capsys.readouterr().err


def test_command_refuses_what_is_no_file_as_the_page(folder, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    for path, problem in (
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "is a device"),
    ):
        assert cli.main(["report", str(folder), "--output", str(path)]) == 2
        assert problem in capsys.readouterr().err
    assert (tmp_path / "pipe").is_fifo()


def browse(path, tmp_path, width=400):
    """Open a file in Chromium; return its content then, its messages, and its URLs."""
    log = tmp_path / "net.json"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"]
    command += [f"--user-data-dir={tmp_path}/profile", f"--window-size={width},900"]
    # What Chromium itself looks for goes to a proxy that isn't there.
    command += ["--proxy-server=127.0.0.1:9", "--proxy-bypass-list=<-loopback>"]
    command += ["--enable-logging=stderr", f"--log-net-log={log}", "--dump-dom"]
    done = subprocess.run(
        [*command, path.as_uri()], capture_output=True, text=True, timeout=100
    )
    messages = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, messages, log.read_text()


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_page_in_a_browser_loads_nothing_and_fits_a_narrow_window(folder, tmp_path):
    html = page_of(read_run(folder))
    page = tmp_path / "page.html"
    page.write_text(html)
    content, messages, net_log = browse(page, tmp_path)
    assert "Where the time went" in content
    assert (messages, "evil" in net_log) == ([], False)
    # A script that measures the page is let in for this only.
    probe = "<script>console.log(document.documentElement.scrollWidth)</script>"
    probe += "<img src='http://127.0.0.1:9/evil/x'></body>"
    page.write_text(
        re.sub(r"<meta http-equiv[^>]*>", "", html).replace("</body>", probe)
    )
    _, messages, net_log = browse(page, tmp_path)
    width = int(re.search(r'"(\d+)", source', "".join(messages))[1])
    assert width <= 500  # of a window that Chromium makes no smaller
    assert "evil" in net_log  # so the log above would have had it
