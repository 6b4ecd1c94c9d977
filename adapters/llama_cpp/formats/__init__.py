"""How models write tool calls: one module for each kind of body a call can have."""
