"""The one place that knows the inside of Lightning; each part has a test that tells when Lightning changes."""
