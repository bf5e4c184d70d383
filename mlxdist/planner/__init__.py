"""What `mlxdist plan` does: predict memory and step time from plain arithmetic."""
