"""How much: rates, concurrency, budgets and wallets, decided over all scopes of a request at once."""
