"""A trained model in the form other libraries load."""
