"""The outcomes as docs/models.md."""
def render(outcomes): return "\n".join(f"{o}" for o in outcomes)
