"""Public data sets as others store them, written as folders that the evaluation reads."""
