"""The semidefinite bound: nearly exact where many neurons are unstable."""
