"""How a job ended, by what its ranks said themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from . import rank_main
from .mpirun import unfinished
from .mpirun_log import Clues


class Outcome(NamedTuple):
    """How the ranks ended, by what they said themselves."""

    ranks: int
    missing: list[int]  # those that did not say that they finished
    reasons: dict[int, str]  # of those of them that said why
    ended: tuple[int, ...] = ()  # those of them that another one's failure ended
    places: tuple[str, ...] = ()  # each rank's host, where there are several
    lost: tuple[str, ...] = ()  # hosts that mpirun lost touch with
    killed: tuple[int, ...] = ()  # of the missing ones, where mpirun or others say so

    @classmethod
    def read(
        cls,
        run_dir: str,
        ranks: int,
        places: Sequence[str],
        clues: Clues,
        *,
        lost: Sequence[str] = (),
        by_user: bool = False,
    ) -> Outcome:
        """From the ranks' marks, and from what mpirun said.

        `by_user`: the user ended the job; which rank was the first then says nothing.
        """
        missing = unfinished(run_dir, ranks)
        files = {rank: rank_main.mark_file(run_dir, "failed", rank) for rank in missing}
        reasons = {
            rank: file.read_text(errors="replace")
            for rank, file in files.items()
            if file.exists()
        }
        ended = tuple(
            rank
            for rank in missing
            if rank not in reasons
            and (
                rank in clues.noticed
                or rank_main.mark_file(run_dir, "ended", rank).exists()
            )
        )
        first = _short(clues.left[0]) if places and clues.left else None
        died = [rank for rank in clues.killed if rank in missing] or [
            rank for rank in missing if first and _short(places[rank]) == first
        ]
        killed = () if by_user else tuple(died)
        return cls(ranks, missing, reasons, ended, tuple(places), tuple(lost), killed)

    def __str__(self) -> str:
        if not self.missing:
            return f"all ranks of {self.ranks} finished"
        alike: dict[str, list[int]] = {}
        for rank, why in self.reasons.items():
            alike.setdefault(why, []).append(rank)
        parts = [f"lost touch with {host}" for host in self.lost]
        parts += [f"{self._named(who)} failed ({why})" for why, who in alike.items()]
        ended = self._ended_with_it()
        silent = [r for r in self.missing if r not in {*self.reasons, *ended}]
        if silent:
            parts.append(f"{self._named(silent)} of {self.ranks} did not finish")
        if ended:
            verb = "was" if len(ended) == 1 else "were"
            parts.append(f"{self._named(ended)} {verb} ended with it")
        return "; ".join(parts)

    def _ended_with_it(self) -> list[int]:
        """Over hosts mpirun, or Open MPI in them, ends other ranks without a word."""
        first = [rank for rank in self.missing if self._host(rank) in self.lost]
        first = first or list(self.killed if self.places else ())
        if not first or self.reasons:
            return list(self.ended)
        return [rank for rank in self.missing if rank not in first]

    def _host(self, rank: int) -> str:
        return self.places[rank] if self.places else ""

    def _named(self, ranks: Sequence[int]) -> str:
        """`ranks 0 and 1`, or `ranks 0 and 1 on mac1, rank 2 on mac2`."""
        if not self.places:
            return _ranks(ranks)
        by_host: dict[str, list[int]] = {}
        for rank in ranks:
            by_host.setdefault(self.places[rank], []).append(rank)
        return ", ".join(f"{_ranks(some)} on {host}" for host, some in by_host.items())


def _short(name: str) -> str:
    return name.partition(".")[0]


def _ranks(ranks: Sequence[int]) -> str:
    *others, last = map(str, ranks)
    return f"ranks {', '.join(others)} and {last}" if others else f"rank {last}"
