"""What a job is: its typed form, its file, how two of them differ. Reads nothing but job files."""
