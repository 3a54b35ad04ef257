"""Reports and model cards."""
