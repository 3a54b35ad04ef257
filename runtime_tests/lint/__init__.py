"""What keeps a model from integers, one function a rule."""
