"""Long checks, each with a command of its own: python -m validation.NAME."""
