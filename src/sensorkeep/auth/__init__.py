"""Who is there, what they may do, and how often: users, keys, tokens, scopes, rate limits, tickets."""
