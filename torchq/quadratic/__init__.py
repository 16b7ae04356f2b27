"""The LMI world: quadratic Q-functions from a few dozen samples, by semidefinite programs."""
