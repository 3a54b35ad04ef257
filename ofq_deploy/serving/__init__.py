"""Folders to serve a model from."""
