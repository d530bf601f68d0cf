"""The steps: each a frozen dataclass of its settings, registered by name."""
