"""The oracle, and the proof that a model computes what training computed."""
