"""The one room that has both the scheduler's plan and tensors."""
