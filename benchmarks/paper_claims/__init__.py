"""The claims of the five papers, how each is measured here, and the rules that decide whether it holds."""
