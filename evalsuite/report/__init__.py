"""What an evaluation found, for people: terminal, HTML, PDF, plots, CSV."""
