"""What a run will need, shown before anything is rented: memory, hours, dollars."""
