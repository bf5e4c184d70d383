"""Chaos run: small trainings with random faults, which must never go wrong silently.

    python -m tests.chaos --minutes 60 --seed 1      # as root, on Linux
    python -m tests.chaos --seed 1 --job 17          # one job of it again

`schedule` draws the jobs from a seed. `rank_faults` and `outer_faults` have the kinds
of fault, `job` runs a plan on virtual hosts, `verdict` judges how it has ended.
"""
