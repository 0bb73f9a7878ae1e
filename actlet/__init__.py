"""actlet: from a slow vision-language-action teacher to a small policy that runs on the robot.

This package is the shared vocabulary of all stages: specifications, action tokens, the bundle manifest, the Policy,
Robot and Task protocols, errors, and the command line. It needs numpy alone.
"""

__version__ = "0.1.0"
