"""What a job is and what makes a good one: the typed job, its rules, recipes, and the facts of clips and machines."""

VERSION = "0.1.0"
