"""The inside of the registry and of the conformance suite: entry points, loading, and checks of scorers."""
