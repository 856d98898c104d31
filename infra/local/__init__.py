"""The provider `local`: a spot cloud that this computer simulates with real processes."""
