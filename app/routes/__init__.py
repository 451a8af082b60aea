"""The routes, a few lines each: they read a request, ask the service, and write the answer."""
