"""The posterior: coordinates, density, PyMC's model, NUTS, Laplace, modes, evidence, verdicts."""
