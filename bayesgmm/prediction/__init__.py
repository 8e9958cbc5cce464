"""Questions to a fit, about rows or columns: densities, assignments, marginals, conditionals."""
