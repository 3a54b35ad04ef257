"""Results: their types, where they are kept, what they conclude."""
