"""Which rows belong together: responsibilities, co-clustering and partitions, over draws."""
