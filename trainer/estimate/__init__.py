"""Says before money is spent what a training needs: memory, time, and whether it fits a card."""
