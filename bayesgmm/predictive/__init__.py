"""What a fit with draws predicts: its density with bands, and data like those that were seen."""
