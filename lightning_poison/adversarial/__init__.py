"""Adversarial training, step by step: what a batch under attack is, and the recipes. No Lightning in sight."""
