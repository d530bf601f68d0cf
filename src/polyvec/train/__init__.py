"""Training: ordered stages of a recipe, from a backbone to an embedder."""
