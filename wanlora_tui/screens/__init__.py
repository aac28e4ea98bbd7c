"""The screens, each over a fold of events or the job being made. They post messages; workers never touch widgets."""
