"""The posterior: coordinates, density, PyMC's model, NUTS, Laplace, the verdict on draws."""
