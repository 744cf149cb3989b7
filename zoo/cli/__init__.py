"""The two command lines: `lightning run` and `zoo`."""
