"""The audit of an embedder: attacks beside defences beside what the defended vectors are worth."""
