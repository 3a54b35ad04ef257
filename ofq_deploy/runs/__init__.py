"""Run folders, and what a command means by its subject."""
