"""Training data by a language model: rows through steps that write, judge, filter and mine."""
