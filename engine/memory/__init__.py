"""A run's memory plan, the card's measured rates, and what to say when memory runs out."""
