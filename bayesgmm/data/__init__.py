"""From anything tabular to checked, anchored rows with names."""
