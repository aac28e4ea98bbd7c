"""All facts of a job, gathered once. Judges nothing."""
