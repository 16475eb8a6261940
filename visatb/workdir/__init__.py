"""What lies in a work folder: for each file one reader beside its writer."""
