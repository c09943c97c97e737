"""The claims of a torture: what was tried, the figures, and whether each claim held."""


class Claims:
    """Collects claims, and prints each one as soon as it is decided."""

    def __init__(self):
        self._rows = []

    def add(self, claim, figure, held):
        print(f"{'held' if held else 'FAILED'} {claim}: {figure}", flush=True)
        self._rows.append((claim, figure, held))

    def failed(self):
        """The number of claims that did not hold."""
        return sum(not held for _, _, held in self._rows)

    def table(self):
        """All claims as a Markdown table."""
        lines = ["| what | figure | held |", "| --- | --- | --- |"]
        lines += [f"| {claim} | {figure} | {'yes' if held else 'NO'} |" for claim, figure, held in self._rows]
        return "\n".join(lines)


def say(text):
    """Print a line of progress."""
    print(f"  {text}", flush=True)
