"""Linear bounds of many subdomains at once: the cheap one of a child, the full one of a leader."""
