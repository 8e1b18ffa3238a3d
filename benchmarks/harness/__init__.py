"""What several benchmarks share: command line, results file, tables, data sets, networks and reference attacks."""
