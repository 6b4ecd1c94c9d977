"""The administration API: routes as data, and what turns them into endpoints."""
