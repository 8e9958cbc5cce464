"""The log-posterior in unconstrained coordinates, by hand."""
