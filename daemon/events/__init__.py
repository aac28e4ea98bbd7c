"""What the runs say: their events.jsonl followed, folded and paged."""
