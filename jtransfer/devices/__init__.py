"""Devices and processes: meshes and shardings, which hosts a launch has, and the line between them."""
