"""What `mlxdist doctor` and `mlxdist test` do: survey machines, diagnose, self-test."""
