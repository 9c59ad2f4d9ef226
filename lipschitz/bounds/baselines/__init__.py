"""Published methods to compare with, one file each, opening with a method card."""
