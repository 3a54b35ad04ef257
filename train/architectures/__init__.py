"""What is special to an architecture in training: one folder each, an adapter of `protocols.Adapter`."""
