"""Hard negatives: documents that look like a query's positives and are not, found by a search."""
