"""Report of a run by rank 0: on the screen, in metrics.jsonl and in loss.png."""

import contextlib
import json
import os
import time
from pathlib import Path
from statistics import mean

from mlx.utils import tree_flatten
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from run_folder import RunFolder


class Report:
    """The report of a run, which rank 0 makes.

    Args:
        folder: of the run.
        done: steps that a loaded checkpoint had.
    """

    def __init__(self, args, folder: RunFolder, model, optimizer, done):
        self.optimizer, self.steps, self.done = optimizer, args.steps, done
        self.losses, self.rates, self.held_out = [], [], []
        self.describe(args, model, optimizer)
        self.folder = folder
        self.metrics = self.open_metrics(folder.metrics)
        # A rank's output goes through mpirun; `mlxdist run` says if it has a terminal.
        terminal = None
        if "OMPI_COMM_WORLD_SIZE" in os.environ:
            terminal = os.environ.get("MLXDIST_TERMINAL") == "1"
        width = min(88, int(os.environ.get("MLXDIST_COLUMNS", 88)))
        self.console = Console(force_terminal=terminal, width=width, highlight=False)
        # Redrawn by show(): automatic refreshing would need a thread.
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        if self.console.is_terminal:
            self.live.start()
        else:
            self.console.print(f"{self.title}\noptimizer state: {self.state}")
        self.began, self.shown = time.perf_counter(), 0.0

    def describe(self, args, model, optimizer) -> None:
        description = optimizer.describe()
        sharded = description.state_bytes / 1e6
        unsharded = description.state_bytes_unsharded / 1e6
        self.state = f"{sharded:.2f} MB a rank, unsharded {unsharded:.2f} MB"
        inner = getattr(optimizer.optimizer, "optimizers", [optimizer.optimizer])
        names = " + ".join(type(each).__name__ for each in inner)
        ranks = optimizer.world.size
        self.ranks = f"{ranks} rank{'s' * (ranks > 1)}"
        size = sum(x.size for _, x in tree_flatten(model.parameters()))
        self.model = f"transformer of {size:,} parameters, {args.dtype}"
        millions = f"{size / 1e6:.2f} M parameters"
        split = (
            f"sharded by {optimizer.options.strategy}"
            if description.plan.sharded
            else "replicated"
        )
        self.title = f"{millions} · {self.ranks} · {names}, {split}"

    def open_metrics(self, path: Path):
        """Open the file of metrics; a resumed run keeps its earlier entries."""
        lines = path.read_text().splitlines() if self.done and path.exists() else []
        complete = [json.loads(line) for line in lines if line.endswith("}")]
        entries = [entry for entry in complete if entry["step"] <= self.done]
        for entry in entries:
            if "val_loss" in entry:
                self.held_out.append((entry["step"], entry["val_loss"]))
            else:
                self.losses.append(entry["loss"])
                self.rates.append(entry["tokens_per_second"])
        temporary = path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        with temporary.open("x") as file:  # not through a link that another user made
            file.writelines(f"{json.dumps(entry)}\n" for entry in entries)
        temporary.replace(path)
        return path.open("a", buffering=1)

    def step(self, step: int, loss: float, tokens_per_second: float) -> None:
        self.losses.append(loss)
        self.rates.append(tokens_per_second)
        self.write(
            step=step,
            loss=loss,
            tokens_per_second=tokens_per_second,
            seconds=time.perf_counter() - self.began,
            grad_norm=self.optimizer.grad_norm.item(),
            learning_rate=self.optimizer.learning_rate.item(),
        )
        pause = 0.1 if self.live.is_started else 3
        if step < self.steps and time.perf_counter() - self.shown > pause:
            self.show(step)

    def validation(self, step: int, loss: float) -> None:
        self.held_out.append((step, loss))
        self.write(step=step, val_loss=loss)
        if self.live.is_started or step == self.steps:
            self.show(step)

    def write(self, **entry: float) -> None:
        print(json.dumps(entry), file=self.metrics)

    def show(self, step: int) -> None:
        self.shown = time.perf_counter()
        self.seconds = self.shown - self.began
        rate = self.optimizer.learning_rate.item()
        held_out = f"held-out {self.held_out[-1][1]:.3f}   " if self.held_out else ""
        figures = (
            f"loss {mean(self.losses[-10:]):.3f}   {held_out}"
            f"{mean(self.rates[-10:]):,.0f} tokens/s   "
            f"learning rate {rate:.1e}"
        )
        if not self.live.is_started:
            self.console.print(f"step {step:>4}/{self.steps}   {figures}")
            return
        left = self.seconds / (step - self.done) * (self.steps - step)
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(self.steps, step, width=40),
            f"step {step} of {self.steps}, {left:.0f} s left",
        )
        body = Group(bar, figures, Text(f"optimizer state {self.state}", style="dim"))
        panel = Panel(body, title=self.title, title_align="left")
        # mpirun forwards whole lines only, so an empty line must follow the panel.
        self.live.update(Group(panel, ""), refresh=True)

    def finish(self, sample: str, identical: bool) -> None:
        self.live.stop()
        written = [self.folder.metrics]
        with contextlib.suppress(ImportError):  # matplotlib comes with mlxdist[plot]
            plot(self.folder.plot, self.title, self.losses, self.held_out)
            written.append(self.folder.plot)
        rows = Table.grid(padding=(0, 3))
        for name, text in {
            "model": self.model,
            "training": f"{self.steps - self.done} steps in {self.seconds:.0f} s on "
            f"{self.ranks}" + f", after {self.done} before" * bool(self.done),
            "training loss": f"{mean(self.losses[-20:]):.3f} nats a byte",
            "held-out loss": f"{self.held_out[-1][1]:.3f} nats a byte",
            "speed": f"{mean(self.rates):,.0f} tokens/s",
            "optimizer state": self.state,
            "parameters": f"identical on all ranks: {'yes' if identical else 'NO'}",
            "written": ", ".join(map(str, written)),
        }.items():
            color = "bold red" if text.endswith("NO") else ""
            rows.add_row(Text(name, style="dim"), Text(text, style=color))
        self.console.print(Panel(Text(sample), title="sample", title_align="left"))
        self.console.print(Panel(rows, title=self.title, title_align="left"))


def plot(path: Path, title: str, losses: list, held_out: list) -> None:
    """Plot the losses; replaces an older plot when the new one is complete."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = len(losses)
    halves = [min(i, count // 30) for i in range(count)]
    smooth = [mean(losses[i - half : i + half + 1]) for i, half in enumerate(halves)]
    steps = range(1, count + 1)
    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    axes.plot(steps, losses, color="#a9cbee", linewidth=1, label="training, each step")
    axes.plot(steps, smooth, color="#1f5fa8", linewidth=2, label="training, smoothed")
    axes.plot(*zip(*held_out, strict=True), "o-", color="#d9632b", label="held out")
    above = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center"}
    axes.annotate(f"{held_out[-1][1]:.2f}", held_out[-1], color="#d9632b", **above)
    axes.set(xlabel="optimizer step", ylabel="loss (nats a byte)", xlim=(0, None))
    axes.set_title(f"Byte-level transformer, {title}", loc="left", pad=12)
    axes.grid(color="#ececec")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    temporary = path.with_suffix(".new.png")
    temporary.unlink(missing_ok=True)
    with temporary.open("xb") as file:
        figure.savefig(file, format="png", dpi=150)
    temporary.replace(path)
