"""The inside of the quarantine manifest: cells, rows, differences, and finding a row's sample again."""
