"""Teachers: networks trained on the real data, images recovered from them, crops they choose."""
