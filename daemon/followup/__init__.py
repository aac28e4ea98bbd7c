"""What follows when a job has ended or the queue is empty: the user's commands and messages, beside the loop."""
