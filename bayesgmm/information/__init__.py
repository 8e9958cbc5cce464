"""A family's local coordinates, the observed information in them, and what is held fixed."""
