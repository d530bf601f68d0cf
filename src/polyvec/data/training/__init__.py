"""Examples to train on: everyone's files as one kind of row, mixed and drawn in batches."""
