"""Order: models that read a query and a document together and say how well they fit."""
