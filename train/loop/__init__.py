"""The training loop: what a phase is made of (schedule, losses, augmentation), one loop, teacher and student."""
