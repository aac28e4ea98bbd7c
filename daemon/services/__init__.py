"""Who starts the daemon with the machine, and again when it dies: systemd, else cron."""
