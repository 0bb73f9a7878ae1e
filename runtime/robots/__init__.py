"""Robots for the control loop that speak what others have already: LeRobot's `Robot` objects, and ROS 2."""

__all__: list[str] = []
