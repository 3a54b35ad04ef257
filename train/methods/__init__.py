"""What a phase of training does beyond gradient descent: `method.Method` and one module a method."""
