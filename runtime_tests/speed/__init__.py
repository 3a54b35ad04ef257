"""Time, and what may be concluded from it."""
