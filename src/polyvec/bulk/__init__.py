"""Folders of texts to shards of vectors: jobs that survive anything, on one machine or many."""
