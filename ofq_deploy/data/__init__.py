"""Images, their classes, and one preprocessing."""
