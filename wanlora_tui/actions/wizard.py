"""Actions of the wizard."""
