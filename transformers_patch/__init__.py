"""Task-weighted training on top of transformers: weighters, the loss, the forward that serves it, and the Trainer."""
