"""Checks of machines, for `mlxdist doctor` and `mlxdist test`.

- survey: asks each host for a report, and runs a job over all of them.
- diagnosis: the list of checks, and the findings they make of the reports. To add a
  check, begin there; host_checks, group_checks and link_checks have the functions.
- remedies: commands that fix what a check found; ssh_errors: kinds of ssh's errors.
- selftest: small training jobs with a known result, and their checks.
- subjob: starts selftest_job and link_job with `mlxdist run`.
- reports: types of all reports.
"""

from .diagnosis import diagnose, diagnose_links
from .finding import Finding, Level
from .reports import Answer, HostReport, LinkReport
from .survey import ask_hosts, measure_links

__all__ = [
    "Answer",
    "Finding",
    "HostReport",
    "Level",
    "LinkReport",
    "ask_hosts",
    "diagnose",
    "diagnose_links",
    "measure_links",
]
