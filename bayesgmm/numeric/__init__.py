"""The pass over the data as vector code, compiled for the machine; small loops in Numba."""
