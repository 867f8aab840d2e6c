"""Fine-tuning: LoRA, replay, and the comparison before and after."""
