"""Maximum likelihood and MAP: starts, the one loop, the search for the maximum, `fit_em`."""
