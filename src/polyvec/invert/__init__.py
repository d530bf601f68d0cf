"""What vectors give away: attacks, defences, and how much of a text comes back."""
