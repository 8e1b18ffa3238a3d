"""Callbacks for a Lightning `Trainer`, one a file."""
