"""What trains, checks and looks again at models, in processes of its own; who asks for it is a policy (`drive`)."""
