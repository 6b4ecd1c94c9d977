"""Where a request goes: which target of a route serves it, and what happens when that one fails."""
