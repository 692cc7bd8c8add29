"""What strings the rooms together."""
