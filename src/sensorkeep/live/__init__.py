"""Live readings: what a decoded batch says to listeners, the bounded fan-out, and the WebSocket door."""
