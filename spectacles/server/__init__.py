"""What api.py serves with."""
