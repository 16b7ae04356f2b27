"""How steps are executed: what a step is, the protocols that order steps, and one engine a file."""
