"""What certified Jacobian bounds are good for: one file per application."""
