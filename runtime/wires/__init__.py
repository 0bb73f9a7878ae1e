"""Wire formats: how observations and actions travel between a robot and a policy elsewhere."""

__all__: list[str] = []
