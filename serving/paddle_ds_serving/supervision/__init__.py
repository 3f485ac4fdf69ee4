"""What keeps a server running and lets it change models: child processes, the pointer, updates, the control socket."""
