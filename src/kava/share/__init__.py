"""A student on the hub: its model card and its upload."""
