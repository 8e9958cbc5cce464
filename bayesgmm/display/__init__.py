"""Fits beside each other: the comparison, its reasons, plots and the report."""
