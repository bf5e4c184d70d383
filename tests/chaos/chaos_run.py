"""A run of many jobs: undisturbed runs to compare with, verdicts, counts."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from .job import PATIENCE, RunningJob
from .kinds import Kind, all_kinds
from .plan import HAND, Configuration, Plan
from .schedule import draw_plan
from .verdict import Observation, Verdict, judge

BAD = ("hang", "wrong")
COLUMNS = ("finished", "failed", *BAD)


@dataclass(frozen=True)
class Result:
    """A job, its verdict, and the one on its start by hand where it had failed."""

    plan: Plan
    seen: Observation
    verdict: Verdict
    by_hand: Verdict | None

    @property
    def outcome(self) -> str:
        """The worse of the two verdicts."""
        outcomes = {x.outcome for x in (self.verdict, self.by_hand) if x}
        return next((x for x in BAD if x in outcomes), self.verdict.outcome)

    @property
    def is_good(self) -> bool:
        return self.outcome not in BAD

    def __str__(self) -> str:
        outcome = self.verdict.outcome
        if self.by_hand is not None:
            outcome += f", by hand {self.by_hand.outcome}"
        line = f"job {self.plan.number}: {outcome}, {self.seen.seconds:.1f} s; "
        reasons = [x.reason for x in (self.verdict, self.by_hand) if x and x.reason]
        return "\n    ".join([line + str(self.plan), *reasons])


class ChaosRun:
    """Runs the jobs of a seed.

    Args:
        keep: folder for all files of jobs that went wrong; None keeps none.
        patience: see `RunningJob`.
    """

    def __init__(
        self, seed: int, keep: Path | None = None, *, patience: float = PATIENCE
    ):
        self._seed, self._keep, self._patience = seed, keep, patience
        kinds = all_kinds()
        self.unavailable = [x for x, kind in kinds.items() if not kind.available()]
        self.kinds: dict[str, Kind] = {
            name: kind for name, kind in kinds.items() if kind.available()
        }
        self._references: dict[Configuration, str] = {}
        self.results: list[Result] = []

    def run_for(self, seconds: float) -> Iterator[Result]:
        """Yield the result of one job after the other."""
        end = time.monotonic() + seconds
        number = 0
        while time.monotonic() < end:
            yield self.run_job(number)
            number += 1

    def run_job(self, number: int) -> Result:
        return self.run_plan(draw_plan(self._seed, number, self.kinds))

    def run_plan(self, plan: Plan) -> Result:
        """Run a job, and again by hand where a fault has ended it."""
        reference = self._reference(plan.configuration)
        by_hand = None
        with RunningJob(plan, self.kinds, self._patience) as job:
            seen = job.run()
            verdict = judge(plan, seen, reference, self.kinds)
            if verdict.outcome == "failed":
                job.repair()
                by_hand = self._judge_undisturbed(job.run(HAND), plan, reference)
            result = Result(plan, seen, verdict, by_hand)
            self.results.append(result)
            if self._keep is not None and not result.is_good:
                self._keep_files(job, result)
        return result

    def _reference(self, configuration: Configuration) -> str:
        """Return the digest of an undisturbed run on one host."""
        if configuration not in self._references:
            plan = Plan(-1, configuration)
            with RunningJob(plan, self.kinds, self._patience) as job:
                seen = job.run()
            digest = seen.output.rpartition(" ")[2].strip()
            verdict = judge(plan, seen, digest, self.kinds)
            if verdict.outcome != "finished":
                problem = f"{verdict.reason}\n{seen.output}\n{seen.errors}"
                raise RuntimeError(f"the undisturbed run of {plan}: {problem}")
            self._references[configuration] = digest
        return self._references[configuration]

    def _judge_undisturbed(
        self, seen: Observation, plan: Plan, reference: str
    ) -> Verdict:
        verdict = judge(plan, seen, reference, self.kinds)
        if verdict.outcome == "failed":
            last = seen.errors.strip().splitlines()[-1:]
            return Verdict("wrong", f"the start by hand failed: {last}")
        return verdict

    def _keep_files(self, job: RunningJob, result: Result) -> None:
        assert self._keep is not None
        folder = self._keep / f"seed-{self._seed}-job-{result.plan.number}"
        shutil.copytree(job.folder, folder, dirs_exist_ok=True)
        (folder / "result.json").write_text(json.dumps(asdict(result), default=list))

    # The report

    def counts(self) -> dict[str, Counter[str]]:
        """Return for each kind of fault that has struck the outcomes of its jobs."""
        table: dict[str, Counter[str]] = {name: Counter() for name in self.kinds}
        for result in self.results:
            for name in {result.plan.faults[index].kind for index in result.seen.fired}:
                table[name][result.outcome] += 1
        return table

    def table(self) -> str:
        """Return the counts as text."""
        total = Counter(result.outcome for result in self.results)
        rows = [("fault", *COLUMNS)]
        rows += [(x, *(str(n[y]) for y in COLUMNS)) for x, n in self.counts().items()]
        rows.append(("all jobs", *(str(total[x]) for x in COLUMNS)))
        lines = ["".join([f"{x[0]:<24}", *(f"{y:>10}" for y in x[1:])]) for x in rows]
        if self.unavailable:
            lines.append(f"not on this machine: {', '.join(self.unavailable)}")
        return "\n".join(lines)

    def write_report(self, path: Path) -> None:
        """Write all results as JSON."""
        jobs = [
            {
                "number": x.plan.number,
                "plan": asdict(x.plan),
                "fired": sorted(x.seen.fired),
                "exit_code": x.seen.exit_code,
                "seconds": round(x.seen.seconds, 2),
                "verdict": asdict(x.verdict),
                "by_hand": x.by_hand and asdict(x.by_hand),
            }
            for x in self.results
        ]
        counts = {name: dict(row) for name, row in self.counts().items()}
        report = {"seed": self._seed, "unavailable": self.unavailable}
        path.write_text(
            json.dumps({**report, "counts": counts, "jobs": jobs}, indent=1)
        )
