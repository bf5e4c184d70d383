"""End of a run on rank 0: a box of figures, and loss.png, both from metrics.jsonl."""

import contextlib
import json
from pathlib import Path
from statistics import mean

from mlx.utils import tree_flatten
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from run_folder import RunFolder

from mlxdist.trackers.progress import make_console


class Report:
    """What to say of a run before and after it."""

    def __init__(self, args, folder: RunFolder, model, optimizer):
        self.folder = folder
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

    def finish(self, done: int, sample: str, identical: bool) -> None:
        """Print the box and plot the losses.

        Args:
            done: steps that a loaded checkpoint had.
        """
        entries = read_entries(self.folder.metrics)
        # A loss that is nan on all ranks is null in the file.
        training = [e for e in entries if e.get("train_loss") is not None]
        held_out = [e for e in entries if e.get("val_loss") is not None]
        written = [self.folder.metrics]
        with contextlib.suppress(ImportError):  # matplotlib comes with mlxdist[plot]
            plot(self.folder.plot, self.title, training, held_out)
            written.append(self.folder.plot)
        last, here = training[-1], [e for e in training if e["step"] > done]
        first = max((e["step"] for e in training[:-1]), default=0) + 1
        before = max((e["time"] for e in entries if e["step"] <= done), default=0)
        rows = Table.grid(padding=(0, 3))
        for name, text in {
            "model": self.model,
            "training": f"{last['step'] - done} steps in {last['time'] - before:.0f} s "
            f"on {self.ranks}" + f", after {done} before" * bool(done),
            "train_loss": f"{last['train_loss']:.3f} nats a byte, mean of steps "
            f"{max(done + 1, first)} to {last['step']}",
            "val_loss": f"{held_out[-1]['val_loss']:.3f} nats a byte, held-out text",
            "speed": f"{mean(e['tokens_per_second'] for e in here):,.0f} tokens/s",
            "optimizer state": self.state,
            "parameters": f"identical on all ranks: {'yes' if identical else 'NO'}",
            "written": ", ".join(map(str, written)),
        }.items():
            color = "bold red" if text.endswith("NO") else ""
            rows.add_row(Text(name, style="dim"), Text(text, style=color))
        console = make_console()
        console.print(Panel(Text(sample), title="sample", title_align="left"))
        console.print(Panel(rows, title=self.title, title_align="left"))


def read_entries(path: Path) -> list:
    """Return the reports of a run, of all its jobs."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def plot(path: Path, title: str, training: list, held_out: list) -> None:
    """Plot the losses; replaces an older plot when the new one is complete."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for entries, name, color, label in (
        (training, "train_loss", "#1f5fa8", "train_loss"),
        (held_out, "val_loss", "#d9632b", "val_loss, held-out text"),
    ):
        steps, losses = zip(*((e["step"], e[name]) for e in entries), strict=True)
        axes.plot(steps, losses, "o-", color=color, markersize=4, label=label)
    above = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center"}
    last = steps[-1], losses[-1]
    axes.annotate(f"{last[1]:.2f}", last, color="#d9632b", **above)
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
