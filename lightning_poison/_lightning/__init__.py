"""Everything that depends on Lightning's internals. Nothing here is public."""
