"""What is made of a finished run: answers, a plain or a merged model, a place on a hub."""
