"""What the user asked for: the experiment file, its models and their names. No work folder is read here."""
