"""Linear bounds of many subdomains at once: cheap for children, full CROWN for the largest."""
