"""A prior by itself: random draws of it, what it says, and where it is improper."""
