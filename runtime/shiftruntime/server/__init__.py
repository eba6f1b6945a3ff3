"""The front end of a pod: gRPC, ops HTTP, text. It never imports torch; the engine is another process."""
