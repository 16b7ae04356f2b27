"""Batches of small semidefinite programs with absolute residuals: a solver, and derivatives of its solutions."""
