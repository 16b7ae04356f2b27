"""Pages about runs: what was learnt, how it compares, and what the tensor looks like."""
