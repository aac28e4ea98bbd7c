"""Numbers, times, paths, events and charts as text, without a screen."""
