"""Actions of the app, the jobs screen and the dashboard."""
