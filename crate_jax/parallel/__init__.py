"""Devices, how arrays lie on them, and how processes meet."""
