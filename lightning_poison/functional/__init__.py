"""Pure functions from tensors to tensors, one concept a file."""
