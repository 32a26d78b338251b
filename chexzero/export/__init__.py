"""Write a trained model in a form that other libraries load."""
