"""What stands around the wizard's steps and follows every change of the draft: the forecast, the checks and findings of
each step, taking changes back, and the words by which the palette finds a field."""
