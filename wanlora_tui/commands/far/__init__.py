"""Commands that reach another machine: what runs there, what is sent to it, what is fetched from it."""
