"""What the tests share: builders of small inputs, real servers, doubles with outside truth."""
