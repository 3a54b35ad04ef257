"""One file a runtime, and the registry that opens them by name."""
