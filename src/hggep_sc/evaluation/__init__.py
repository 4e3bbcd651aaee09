"""Figures of merit, and tables of them."""
