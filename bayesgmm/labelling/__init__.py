"""One labelling of the components for all draws, and whether it can be relied on."""
