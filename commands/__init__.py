"""Parts of the command line that are ideas of their own; main.py puts them together."""
