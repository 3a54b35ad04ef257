"""Where float weights come from: networks by name, timm's files, checkpoints of OFQ's official code."""
